"""Partitions: which node has which training images. Each scheme is one function, which draws from one generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ..errors import InputError, some
from ..registry import errors_of, find, options
from .flower_partitions import PACKAGE, find_partitioner, flower_parts, is_flowers

Clients = Annotated[int, Field(ge=1)]

Positive = Annotated[float, Field(gt=0)]

KEY = "data.partition"

_ROUNDING = 1e-6  # of the sum of a node's prior

_BELOW = 1e-9  # a share of a number of images may be this far below the whole number that it is: 0.29 * 100

_DRAWS = 100  # the largest number of draws to reach the minimum


class Pool(NamedTuple):
    """The training samples, as a scheme gets them: `labels` and `domains`, int64, N; class and domain names.

    `holders`, int64, N: who has each sample, as a position in `holder_names`; None if the set does not say so.
    `columns`: others that a partitioner of flwr_datasets may look at, by name. `targets`, N: of a regression, where
    `labels` are bins of them.
    """

    labels: np.ndarray
    domains: np.ndarray
    classes: tuple[str, ...]
    domain_names: tuple[str, ...]
    holders: np.ndarray | None = None
    holder_names: tuple[str, ...] = ()
    columns: Mapping[str, np.ndarray] = MappingProxyType({})
    targets: np.ndarray | None = None


@dataclass(frozen=True)
class Drawn:
    """Each node's positions, drawn from the node's own stream when they are needed, so that a million nodes need no
    memory.

    `members`: the positions of each class. Nodes may share images; no node has an image twice.
    """

    clients: int
    size: int
    alpha: float
    key: int
    members: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return self.clients

    def __getitem__(self, node: int) -> np.ndarray:
        if not 0 <= node < self.clients:
            raise IndexError(node)
        rng = np.random.default_rng([self.key, node])
        available = np.array([len(members) for members in self.members])
        prior = _dirichlet(rng, len(self.members), self.alpha)
        counts = allocate(rng.multinomial(self.size, prior) / self.size, self.size, available)
        chosen = [
            m[rng.choice(len(m), c, replace=False, shuffle=False)] for m, c in zip(self.members, counts, strict=True)
        ]
        return np.sort(np.concatenate(chosen))

    def lengths(self) -> np.ndarray:
        """Return each node's number of positions."""
        return np.full(self.clients, self.size)


class Split(NamedTuple):
    """Which node has which images: positions in the pool, one array for each node.

    `priors`, nodes x classes: the label distributions from which the nodes' images were drawn, if the scheme has them.
    A node's test images then follow its prior; otherwise they follow the labels of its training images. `holders`: for
    each node the positions in `Pool.holder_names` that it is; then its test samples are those of these holders.
    `test_shots`: so many test images of each class that a node has; node i has those from `i * test_shots` on.
    """

    parts: list[np.ndarray] | Drawn
    priors: np.ndarray | None = None
    holders: list[list[int]] | None = None
    test_shots: int | None = None


def split(
    pool: Pool, table: dict[str, Any], rng: np.random.Generator, seed: int = 0, share: float | None = None
) -> Split:
    """Return the positions of each node's images by the scheme that `table` names, ascending for each node.

    `minimum` (1 by default) is the fewest images that a node may get: a draw with fewer is repeated, at most 100 times.
    `seed`: of a partitioner of flwr_datasets, which draws once. `share`: each node keeps only this share of what the
    scheme gives it, rounded down: the first ones in the scheme's own order.
    Raises InputError for an unknown scheme, wrong options, more clients than images, or a minimum that is not reached.
    """
    found = _dealt(pool, table, rng, seed)
    if isinstance(found.parts, Drawn):
        if share is not None:
            raise InputError(
                f"data.node_train = {share:g}: with {KEY}.scheme = 'drawn' a node's images have no order; lower "
                f"{KEY}.size."
            )
        return found
    parts = found.parts if share is None else [_first_of(part, share, node) for node, part in enumerate(found.parts)]
    return found._replace(parts=[np.sort(part) for part in parts])


def _first_of(part: np.ndarray, share: float, node: int) -> np.ndarray:
    """Return the first images of a node: this share, rounded down. Raises InputError if that is none."""
    count = math.floor(share * len(part) + _BELOW)
    if count == 0:
        raise InputError(f"data.node_train = {share:g}: node {node} has {len(part)} images, of which none is left.")
    return part[:count]


def _dealt(pool: Pool, table: dict[str, Any], rng: np.random.Generator, seed: int = 0) -> Split:
    """Return what a scheme deals, the images of each node in the scheme's own order; see `split`."""
    table = dict(table)
    name = table.pop("scheme")
    minimum = table.pop("minimum")
    scheme = find_partitioner(name) if name.startswith(PACKAGE) else find("partitions", name, f"{KEY}.scheme")
    if pool.targets is not None:
        _refuse_classes(scheme, name, table)
    if is_flowers(scheme):
        return _of_flower(pool, scheme, name, table, minimum, seed)
    chosen = options(scheme, table, KEY, common=("scheme", "minimum", "seed"))
    clients = chosen.get("clients")
    if scheme is not drawn and clients is not None and clients * minimum > len(pool.labels):
        raise InputError(
            f"{KEY}.clients = {clients}: with a minimum of {minimum} per node, {clients * minimum} images are needed, "
            f"but there are {len(pool.labels)}."
        )
    best = 0
    for _ in range(_DRAWS):
        with errors_of(name, f"{KEY}.scheme"):
            found: Split = scheme(pool, rng, **chosen)
        if not isinstance(found, Split):
            raise InputError(f"{KEY}.scheme = {name!r} returns {type(found).__name__}, not a fedkd.Split.")
        if isinstance(found.parts, Drawn):
            return found
        _check_positions(found, pool, name)
        smallest = min(len(part) for part in found.parts)
        if smallest >= minimum:
            return found
        best = max(best, smallest)
    raise InputError(
        f"{KEY}.minimum = {minimum}: the smallest node got {best} images in the best of {_DRAWS} draws. "
        "Lower the minimum or the number of clients, or make the partition less skewed."
    )


def _refuse_classes(scheme: Any, name: str, table: Mapping[str, Any]) -> None:
    """Raise InputError for a scheme that splits by classes: a regression has none."""
    by_class = scheme in (
        dirichlet, client_dirichlet, dirichlet_dealt, groups, drawn, shards, classes_per_client, ways,
    )  # fmt: skip
    if is_flowers(scheme):
        numeric = ("Iid", "Linear", "Square", "Exponential", "Size", "Continuous", "Natural")
        by_class = table.get("partition_by", "label") == "label" and not any(one in name for one in numeric)
    if by_class:
        raise InputError(
            f"{KEY}.scheme = {name!r} splits by classes, and a regression has none; valid are iid, quantity, natural, "
            "domains, and flwr_datasets.partitioner:ContinuousPartitioner."
        )


def _of_flower(pool: Pool, scheme: Any, name: str, table: dict[str, Any], minimum: int, seed: int) -> Split:
    columns = {**pool.columns, "label": pool.labels if pool.targets is None else pool.targets}
    if pool.holders is not None:
        columns["node"] = np.array(pool.holder_names)[pool.holders]
    parts, by = flower_parts(scheme, name, table, columns, seed)
    owners = None
    if by == "node" and pool.holders is not None:  # if it leaves holders whole, their test samples are theirs too
        groups = [np.unique(pool.holders[part]).tolist() for part in parts]
        owners = groups if sum(map(len, groups)) == len({one for group in groups for one in group}) else None
    found = Split(parts, None, owners)
    _check_positions(found, pool, name)
    smallest = min(len(part) for part in parts)
    if smallest < minimum:
        raise InputError(f"{KEY}.minimum = {minimum}: the smallest node got {smallest} samples from {name}.")
    return found


def _check_positions(found: Split, pool: Pool, name: str) -> None:
    """Raise InputError, which names the node, for positions that are not those of images, or that occur twice."""
    key, count = f"{KEY}.scheme = {name!r}", len(pool.labels)
    if not isinstance(found.parts, list) or not found.parts:
        raise InputError(f"{key}: it returns no list of positions with an array for each node.")
    owner = np.full(count, -1)
    for node, part in enumerate(found.parts):
        if not isinstance(part, np.ndarray) or part.ndim != 1 or (part.dtype.kind not in "iu" and len(part)):
            have = f"{part.dtype}, {part.ndim}-D" if isinstance(part, np.ndarray) else type(part).__name__
            raise InputError(f"{key}: node {node} has {have}; positions must be a list of whole numbers, np.int64.")
        if not len(part):
            continue
        if not 0 <= int(part.min()) <= int(part.max()) < count:
            wrong = part.min() if part.min() < 0 else part.max()
            raise InputError(f"{key}: node {node} has the position {wrong}; valid are 0 to {count - 1}.")
        if len(np.unique(part)) < len(part):
            values, times = np.unique(part, return_counts=True)
            raise InputError(f"{key}: node {node} has the position {values[times > 1][0]} twice.")
        if (before := owner[part]).max() >= 0:
            place = int(before.argmax())
            raise InputError(f"{key}: nodes {before[place]} and {node} both have the position {part[place]}.")
        owner[part] = node
    if found.priors is not None:
        wanted, priors = (len(found.parts), len(pool.classes)), np.asarray(found.priors)
        rows = priors.dtype.kind == "f" and priors.shape == wanted and np.isfinite(priors).all()
        if not rows or (priors < 0).any() or (np.abs(priors.sum(1) - 1) > _ROUNDING).any():
            raise InputError(
                f"{key}: priors must be shares of the classes, 0 to 1, that sum to 1 for each node, nodes x classes = "
                f"{wanted}; they are {priors.dtype}, {priors.shape}."
            )


def natural(
    pool: Pool, rng: np.random.Generator, *, small: Literal["refuse", "drop", "merge"] = "refuse", least: Clients = 2
) -> Split:
    """Give each holder of the set its own samples: a node for each name in the set's node column, in their order.

    `small`: of holders with fewer than `least` training samples: `refuse` them, `drop` them, or `merge` them, all
    together, into one node.
    """
    if pool.holders is None:
        raise InputError(f"{KEY}.scheme = 'natural': the set does not say who has which sample; set data.node.")
    parts = [np.flatnonzero(pool.holders == holder) for holder in range(len(pool.holder_names))]
    few = [holder for holder, part in enumerate(parts) if len(part) < least]
    groups = [[holder] for holder, part in enumerate(parts) if len(part) >= least]
    if few and small == "refuse":
        names = some([f"{pool.holder_names[holder]} ({len(parts[holder])})" for holder in few])
        raise InputError(
            f"{KEY}.scheme = 'natural': {len(few)} nodes have fewer than {least} training samples: {names}; set "
            "small = 'drop' or 'merge', or least."
        )
    if small == "merge" and any(len(parts[holder]) > 0 for holder in few):
        groups.append(few)
    if not groups:
        raise InputError(f"{KEY}.least = {least}: no node has so many training samples.")
    return Split([np.concatenate([parts[holder] for holder in group]) for group in groups], None, groups)


def iid(pool: Pool, rng: np.random.Generator, *, clients: Clients) -> Split:
    """Split the images randomly into equal parts."""
    return Split(np.array_split(rng.permutation(len(pool.labels)), clients))


def dirichlet(
    pool: Pool, rng: np.random.Generator, *, clients: Clients, alpha: Positive, capped: bool | Clients = False
) -> Split:
    """Split each class among the clients by shares ~ Dir(alpha) (Hsu et al., 2019; Li et al., 2022). Sizes differ.

    `capped`: a client that already has an equal share of all images, or this number of images, gets no images of later
    classes; then sizes differ less. NIID-Bench's and FedX's code has the equal share, FedGen's a number (1500).
    """
    most = len(pool.labels) / clients if isinstance(capped, bool) else capped
    if not isinstance(capped, bool) and capped * clients < len(pool.labels):
        raise InputError(
            f"{KEY}.capped = {capped}: {clients} clients may all have so many before {len(pool.labels)} images are "
            f"dealt; valid are true and {-(-len(pool.labels) // clients)} or more."
        )
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in range(len(pool.classes)):
        members = rng.permutation(np.flatnonzero(pool.labels == label))
        shares = _dirichlet(rng, clients, alpha)
        if capped:
            open_ = np.array([sum(map(len, part)) < most for part in parts])
            shares = np.where(open_, np.maximum(shares, np.finfo(np.float64).tiny), 0)
            shares /= shares.sum()
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, chunk in zip(parts, np.split(members, cuts), strict=True):
            part.append(chunk)
    return Split([np.concatenate(part) for part in parts])


def client_dirichlet(
    pool: Pool, rng: np.random.Generator, *, clients: Clients, alpha: Positive, size: Clients | None = None
) -> Split:
    """Give each client `size` images by its own class prior ~ Dir(alpha), without replacement.

    `size` is by default an equal share of the pool. If a class has no images left, the client's remaining images come
    from its other classes in the proportions of its prior.
    """
    size = size or len(pool.labels) // clients
    if size * clients > len(pool.labels):
        raise InputError(f"{KEY}.size = {size}: {clients} clients need {size * clients} images, of {len(pool.labels)}.")
    members = [rng.permutation(np.flatnonzero(pool.labels == label)) for label in range(len(pool.classes))]
    used = np.zeros(len(members), np.int64)
    parts = []
    for _ in range(clients):
        left = np.array([len(m) for m in members]) - used
        counts = allocate(_dirichlet(rng, len(members), alpha), size, left)
        parts.append(np.concatenate([m[u : u + c] for m, u, c in zip(members, used, counts, strict=True)]))
        used += counts
    return Split(parts)


def dirichlet_dealt(
    pool: Pool, rng: np.random.Generator, *, clients: Clients, alpha: Positive, size: Clients | None = None
) -> Split:
    """Deal images one at a time: to a random client that is not full, of a class drawn from its prior ~ Dir(alpha).

    The split of FedDyn's and FedFTG's code; `size` images per client, by default an equal share of the pool. If the
    drawn class has no images left, a class is drawn again. So a client's number gives it no advantage for rare classes.
    """
    size = size or len(pool.labels) // clients
    if size * clients > len(pool.labels):
        raise InputError(f"{KEY}.size = {size}: {clients} clients need {size * clients} images, of {len(pool.labels)}.")
    classes = len(pool.classes)
    members = [rng.permutation(np.flatnonzero(pool.labels == label)) for label in range(classes)]
    priors = np.stack([_dirichlet(rng, classes, alpha) for _ in range(clients)])
    left = np.array([len(m) for m in members])
    counts = deal(priors, left, np.full(clients, size), rng.random, lambda n: int(rng.integers(n)))
    ends = np.cumsum(counts, axis=0)
    parts = [
        np.concatenate([m[e - c : e] for m, e, c in zip(members, ends[k], counts[k], strict=True)])
        for k in range(clients)
    ]
    return Split(parts)


def deal(
    priors: np.ndarray,
    left: np.ndarray,
    places: np.ndarray,
    uniform: Callable[[], float],
    below: Callable[[int], int],
    redraws: int = 1000,
) -> np.ndarray:
    """Return how many images of each class each client gets, clients x classes, dealt one at a time.

    `priors`: clients x classes; `left`: images of each class; `places`: images of each client. If the drawn class has
    no images left, a class is drawn again, up to `redraws` times. Then the class is drawn by the client's prior among
    the classes that have images left (the same distribution), or uniformly if this prior is 0.
    """
    left, places = left.copy(), places.copy()
    cumulative = np.cumsum(priors, axis=1)
    counts = np.zeros(priors.shape, np.int64)
    while places.any():
        client = below(len(places))
        if places[client] == 0:
            continue
        for _ in range(redraws):
            label = int(np.argmax(uniform() <= cumulative[client]))
            if left[label]:
                break
        else:
            open_ = np.where(left > 0, np.maximum(priors[client], np.finfo(np.float64).tiny), 0)
            label = int(np.argmax(uniform() <= np.cumsum(open_ / open_.sum())))
        places[client] -= 1
        left[label] -= 1
        counts[client, label] += 1
    return counts


def groups(
    pool: Pool, rng: np.random.Generator, *, clients: Clients, groups: Clients, alpha: Positive, size: Clients
) -> Split:
    """Form `groups` hidden groups of clients: one class prior ~ Dir(alpha) per group, `size` images per client from it.

    Clients 0, 1, ... are in group 0, the next ones in group 1, and so on; sizes of groups differ by at most one. Each
    client draws its class counts from the group's prior (multinomial) and its images without replacement, so clients of
    a group have different images. With as many groups as clients, each client has its own prior. If a class has no
    images left, the rest comes from the client's other classes.
    """
    if groups > clients:
        raise InputError(f"{KEY}.groups = {groups}: there are only {clients} clients.")
    if size * clients > len(pool.labels):
        raise InputError(f"{KEY}.size = {size}: {clients} clients need {size * clients} images, of {len(pool.labels)}.")
    classes = len(pool.classes)
    of_group = np.stack([_dirichlet(rng, classes, alpha) for _ in range(groups)])
    priors = of_group[np.arange(clients) * groups // clients]
    members = [rng.permutation(np.flatnonzero(pool.labels == label)) for label in range(classes)]
    used = np.zeros(classes, np.int64)
    parts = []
    for prior in priors:
        left = np.array([len(m) for m in members]) - used
        counts = allocate(rng.multinomial(size, prior) / size, size, left)
        parts.append(np.concatenate([m[u : u + c] for m, u, c in zip(members, used, counts, strict=True)]))
        used += counts
    return Split(parts, priors)


def drawn(pool: Pool, rng: np.random.Generator, *, clients: Clients, alpha: Positive, size: Clients) -> Split:
    """Draw `size` images for each client by its own class prior ~ Dir(alpha); clients may share images.

    For very many clients, each with few images: a client's images are drawn when they are needed. If a class is too
    small, the rest comes from the client's other classes.
    """
    if size > len(pool.labels):
        raise InputError(f"{KEY}.size = {size}: there are only {len(pool.labels)} images.")
    if len(pool.domain_names) > 1:
        raise InputError(f"{KEY}.scheme = 'drawn': the federation has several sets, but this scheme is for one set.")
    members = tuple(np.flatnonzero(pool.labels == label) for label in range(len(pool.classes)))
    return Split(Drawn(clients, size, alpha, int(rng.integers(2**63)), members))


def shards(
    pool: Pool,
    rng: np.random.Generator,
    *,
    clients: Clients,
    per_client: Clients = 2,
    cut: Literal["all", "class"] = "all",
) -> Split:
    """Sort by label, cut into equal shards, give `per_client` to each: McMahan et al.'s pathological split (2017).

    `cut`: `all`: all images are cut together, so a shard may have the end of a class and the beginning of the next one;
    `class`: each class is cut by itself, into equally many shards, as in the code of LG-FedAvg and FedNTD.
    """
    order = rng.permutation(len(pool.labels))
    order = order[np.argsort(pool.labels[order], kind="stable")]
    if cut == "all":
        pieces = np.array_split(order, clients * per_client)
    else:
        each, rest = divmod(clients * per_client, len(pool.classes))
        if rest:
            raise InputError(
                f"{KEY}.cut = 'class': {clients} clients x {per_client} per client are {clients * per_client} shards; "
                f"equally many shards of each class need a multiple of {len(pool.classes)}, the number of classes."
            )
        classes = np.split(order, np.searchsorted(pool.labels[order], np.arange(1, len(pool.classes))))
        pieces = [piece for members in classes for piece in np.array_split(members, each)]
    dealt = rng.permutation(len(pieces)).reshape(clients, per_client)
    return Split([np.concatenate([pieces[i] for i in hand]) for hand in dealt])


def classes_per_client(
    pool: Pool,
    rng: np.random.Generator,
    *,
    clients: Clients,
    classes: Clients = 2,
    deal: Literal["equal", "niid_bench"] = "equal",
) -> Split:
    """Give each client exactly `classes` classes, and split each class evenly among the clients that have it.

    `deal`: `equal`: each class has equally many clients; `niid_bench`: client i has class i mod C, and the others are
    drawn, as in NIID-Bench's code (#label = k). Images of a class that no client has are not used.
    """
    total = len(pool.classes)
    if classes > total:
        raise InputError(f"{KEY}.classes = {classes}: the data has only {total} classes.")
    hands = (_equal_hands if deal == "equal" else _niid_bench_hands)(rng, clients, classes, total)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in range(total):
        members = rng.permutation(np.flatnonzero(pool.labels == label))
        if clients_of := [client for client, hand in enumerate(hands) if label in hand]:
            for client, chunk in zip(clients_of, np.array_split(members, len(clients_of)), strict=True):
                parts[client].append(chunk)
    return Split([np.concatenate(part) for part in parts])


def _equal_hands(rng: np.random.Generator, clients: int, classes: int, total: int) -> list[list[int]]:
    """Return the classes of each client, so that each class has equally many clients."""
    hands: list[list[int]] = []
    deck: list[int] = []
    for _ in range(clients):
        hand: list[int] = []
        while len(hand) < classes:
            if not any(label not in hand for label in deck):
                deck += rng.permutation(total).tolist()
            hand.append(deck.pop(next(i for i, label in enumerate(deck) if label not in hand)))
        hands.append(hand)
    return hands


def _niid_bench_hands(rng: np.random.Generator, clients: int, classes: int, total: int) -> list[list[int]]:
    """Return the classes of each client: one in turn, and others that are drawn."""
    hands = []
    for client in range(clients):
        others = np.delete(np.arange(total), client % total)
        hands.append([client % total, *rng.choice(others, classes - 1, replace=False).tolist()])
    return hands


def ways(
    pool: Pool,
    rng: np.random.Generator,
    *,
    clients: Clients,
    ways: Clients,
    stdev: Annotated[int, Field(ge=0)] = 2,
    shots: Annotated[int, Field(ge=2)] = 100,
    most_shots: Clients = 110,
    test_shots: Clients = 40,
) -> Split:
    """Give each client about `ways` classes, and `shots` images of each: FedProto's n-way k-shot (Tan et al., 2022).

    The number of a client's classes is drawn from max(2, `ways` - `stdev`) to min(C - 1, `ways` + `stdev`), each
    equally likely, and then the classes. Of each of them it gets `shots` - 1 or `shots` images, drawn once for the
    client: client i those of the class from its image `i * most_shots` on, in the order of the set. Its test images are
    `test_shots` of each of its classes, from `i * test_shots` on. No image is with two clients.
    """
    total = len(pool.classes)
    if len(pool.domain_names) > 1:
        raise InputError(f"{KEY}.scheme = 'ways': the federation has several sets, but this scheme is for one set.")
    least, most = max(2, ways - stdev), min(total - 1, ways + stdev)
    if least > most:
        raise InputError(
            f"{KEY}.ways = {ways}: with stdev = {stdev} the number of a client's classes would be drawn from {least} "
            f"to {most}, as it is two at least and never all {total}; set other ways or another stdev."
        )
    if shots > most_shots:
        raise InputError(f"{KEY}.shots = {shots}: clients share images if that is over most_shots = {most_shots}.")
    members = [np.flatnonzero(pool.labels == label) for label in range(total)]
    few = min(range(total), key=lambda label: len(members[label]))
    if len(members[few]) < clients * most_shots:
        raise InputError(
            f"{KEY}.most_shots = {most_shots}: {clients} clients need {clients * most_shots} images of each class, and "
            f"{pool.classes[few]!r} has {len(members[few])}; lower most_shots or clients."
        )
    counts = rng.integers(least, most + 1, clients)
    images = rng.integers(shots - 1, shots + 1, clients)
    parts = []
    for client, (count, k) in enumerate(zip(counts, images, strict=True)):
        own, first = np.sort(rng.choice(total, count, replace=False)), client * most_shots
        parts.append(np.concatenate([members[label][first : first + k] for label in own]))
    return Split(parts, test_shots=test_shots)


def quantity(
    pool: Pool,
    rng: np.random.Generator,
    *,
    clients: Clients,
    sigma: Positive | None = None,
    alpha: Positive | None = None,
) -> Split:
    """Split randomly into parts of unequal size: log share ~ N(0, sigma^2). All have the same label distribution.

    `sigma` is 1 by default. `alpha` in its place: the shares are drawn from Dir(alpha), as in NIID-Bench's code.
    """
    if sigma is not None and alpha is not None:
        raise InputError(f"{KEY}.sigma and {KEY}.alpha both say how sizes are drawn; remove one of them.")
    if alpha is not None:
        shares = _dirichlet(rng, clients, alpha)
    else:
        shares = rng.lognormal(0.0, 1.0 if sigma is None else sigma, clients)
    cuts = np.round(np.cumsum(shares / shares.sum())[:-1] * len(pool.labels)).astype(np.int64)
    return Split(np.split(rng.permutation(len(pool.labels)), cuts))


def domains(
    pool: Pool, rng: np.random.Generator, *, per_domain: Clients = 1, within: dict[str, Any] | None = None
) -> Split:
    """Give each client images of one domain (one named set): `per_domain` clients per domain, split by `within`.

    `within` is a table like `data.partition` without `clients`, `{ scheme = "iid" }` by default.
    """
    parts: list[np.ndarray] = []
    priors: list[np.ndarray] = []
    table = {"scheme": "iid", "minimum": 1, **(within or {}), "clients": per_domain}
    for domain in range(len(pool.domain_names)):
        members = np.flatnonzero(pool.domains == domain)
        inner = pool._replace(labels=pool.labels[members], domains=pool.domains[members])
        found = _dealt(inner, table, rng)
        if isinstance(found.parts, Drawn) or found.test_shots is not None:
            raise InputError(
                f"{KEY}.within.scheme = {table['scheme']!r}: this scheme is only for one set; use another scheme."
            )
        parts += [members[part] for part in found.parts]
        priors += [] if found.priors is None else [found.priors]
    return Split(parts, np.concatenate(priors) if priors else None)


def allocate(prior: np.ndarray, size: int, available: np.ndarray) -> np.ndarray:
    """Return whole counts that sum to `size`, follow `prior` by largest remainder, and stay within `available`.

    If the classes of the prior have no images left, the rest comes from the others evenly. The sum of `available` must
    be at least `size`.
    """
    counts = np.zeros(len(prior), np.int64)
    weights = prior.astype(np.float64)
    while (need := size - int(counts.sum())) > 0:
        open_classes = counts < available
        weights = np.where(open_classes, weights, 0.0)
        if weights.sum() <= 0:
            weights = open_classes.astype(np.float64)
        ideal = weights / weights.sum() * need
        step = np.floor(ideal).astype(np.int64)
        for label in np.argsort(-(ideal - step), kind="stable")[: need - int(step.sum())]:
            step[label] += 1
        counts = np.minimum(counts + step, available)
    return counts


def _dirichlet(rng: np.random.Generator, size: int, alpha: float) -> np.ndarray:
    """Draw shares ~ Dir(alpha). If a tiny alpha makes every share underflow to 0, one random share is 1."""
    shares = rng.dirichlet(np.full(size, alpha))
    if not np.isfinite(shares).all() or shares.sum() <= 0:
        shares = np.zeros(size)
        shares[rng.integers(size)] = 1.0
    return shares

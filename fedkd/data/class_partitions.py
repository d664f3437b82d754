"""Partitions by class: schemes that say how many samples of each class a node gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ..errors import InputError
from .splits import KEY, Clients, Drawn, Pool, Positive, Split, allocate, dirichlet_shares


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
        shares = dirichlet_shares(rng, clients, alpha)
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
        counts = allocate(dirichlet_shares(rng, len(members), alpha), size, left)
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
    priors = np.stack([dirichlet_shares(rng, classes, alpha) for _ in range(clients)])
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
    of_group = np.stack([dirichlet_shares(rng, classes, alpha) for _ in range(groups)])
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


BY_CLASS = (
    dirichlet, client_dirichlet, dirichlet_dealt, groups, drawn, shards, classes_per_client, ways,
)  # fmt: skip

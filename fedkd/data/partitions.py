"""Partitions: which node has which training images. Each scheme is one function, which draws from one generator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..errors import InputError, some
from ..registry import errors_of, find, options
from .class_partitions import BY_CLASS, drawn
from .flower_partitions import PACKAGE, find_partitioner, flower_parts, is_flowers
from .splits import KEY, Clients, Drawn, Pool, Positive, Split, dirichlet_shares

_ROUNDING = 1e-6  # of the sum of a node's prior

_BELOW = 1e-9  # a share of a number of images may be this far below the whole number that it is: 0.29 * 100

_DRAWS = 100  # the largest number of draws to reach the minimum


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
    by_class = scheme in BY_CLASS
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
        shares = dirichlet_shares(rng, clients, alpha)
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

"""What a scheme of a partition gets and returns, and what schemes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

Clients = Annotated[int, Field(ge=1)]

Positive = Annotated[float, Field(gt=0)]

KEY = "data.partition"


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
        prior = dirichlet_shares(rng, len(self.members), self.alpha)
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


def dirichlet_shares(rng: np.random.Generator, size: int, alpha: float) -> np.ndarray:
    """Draw shares ~ Dir(alpha). If a tiny alpha makes every share underflow to 0, one random share is 1."""
    shares = rng.dirichlet(np.full(size, alpha))
    if not np.isfinite(shares).all() or shares.sum() <= 0:
        shares = np.zeros(size)
        shares[rng.integers(size)] = 1.0
    return shares

"""The deals of the authors' code of published tables, with their random numbers, so that nodes have the same images."""

from __future__ import annotations

import random

import numpy as np

from ..data.partitions import Clients, Pool, Positive, Split

_SEED = 42  # of `random` and numpy in FedGen's script
_SMALLEST = 10  # images of a node; with fewer all is drawn again


def fedgen(pool: Pool, rng: np.random.Generator, *, clients: Clients = 20, alpha: Positive) -> Split:
    """Return the deal of zhuangdizhu/FedGen, data/Mnist/generate_niid_dirichlet.py, with --sampling_ratio 0.5.

    Classes in an order drawn once; of each at most N / (2 clients) images, or half of it; split by Dir(alpha) among the
    clients that do not have that many yet. `rng` is not used: the script's seed is 42.
    """
    own, legacy = random.Random(_SEED), np.random.RandomState(_SEED)
    order = list(range(len(pool.classes)))
    own.shuffle(order)
    members = [np.flatnonzero(pool.labels == label) for label in range(len(pool.classes))]
    most = 0.5 * len(pool.labels) / clients
    while True:
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        sizes = np.zeros(clients)
        for label in order:
            chosen = list(range(len(members[label])))
            legacy.shuffle(chosen)
            chosen = chosen[: int(min(most, 0.5 * len(members[label])))]
            shares = legacy.dirichlet(np.repeat(alpha, clients)) * (sizes < most)
            cuts = (np.cumsum(shares / shares.sum()) * len(chosen)).astype(int)[:-1]
            for client, positions in enumerate(np.split(np.array(chosen), cuts)):
                parts[client].append(members[label][positions])
                sizes[client] += len(positions)
        if sizes.min() >= _SMALLEST:
            return Split([np.concatenate(part) for part in parts])

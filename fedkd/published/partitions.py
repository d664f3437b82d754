"""The deals of the authors' code of published tables, with their random numbers, so that nodes have the same images."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np

from ..data.splits import Clients, Pool, Positive, Split
from ..errors import InputError

_SEED = 42  # of `random` and numpy in FedGen's script
_SMALLEST = 10  # images of a node; with fewer all is drawn again
_DRAWS = 1000  # the most of FedDF's
_GROUP = 10  # clients of FedDF that share a part of the images
_ASSURED = 5  # images of each of a node's two labels, in Flower's baseline of FedProx


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


def fedprox(pool: Pool, rng: np.random.Generator, *, clients: Clients = 1000, sigma: Positive = 2.0) -> Split:
    """Return the deal of Flower's baseline `fedprox`, dataset_preparation.py, of which a node trains on nine tenths.

    Client i has the labels i and i + 1 modulo C: 5 images of each, then shares of what is left of a label, which are
    log-normal(0, sigma) numbers over its owners, rounded down. A tenth of its images, drawn at random, is for its own
    validation, and is left out here. The code's log-normal numbers have no seed: here they are drawn from `rng`.

    Raises InputError for a number of clients that is no multiple of C, and for a label with too few images.
    """
    classes = len(pool.classes)
    members = [np.flatnonzero(pool.labels == label) for label in range(classes)]
    sizes = np.array([len(positions) for positions in members])
    assured = 2 * _ASSURED * clients // classes
    if clients % classes or sizes.min() < assured:
        raise InputError(
            f"data.partition.clients = {clients}: it must be a multiple of the {classes} classes, and each class needs "
            f"{assured} images; the smallest has {sizes.min()}."
        )
    shares = rng.lognormal(0.0, sigma, (classes, clients // classes, 2))
    more = ((sizes - assured).reshape(-1, 1, 1) * shares / shares.sum((1, 2), keepdims=True)).astype(int)
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    dealt = [0] * classes
    for extra in (False, True):
        for client, part in enumerate(parts):
            for place in range(2):
                label = (client + place) % classes
                count = more[label, client // classes, place] if extra else _ASSURED
                part.append(members[label][dealt[label] : dealt[label] + count])
                dealt[label] += count
    whole = [np.concatenate(part) for part in parts]
    return Split([part[rng.permutation(len(part))[len(part) // 10 :]] for part in whole])


def feddf(pool: Pool, rng: np.random.Generator, *, clients: Clients = 20, alpha: Positive) -> Split:
    """Return the deal of FedDF's code, codes/FedDF-code/pcode/datasets/partition_data.py.

    The images, in random order, are cut into parts for ten clients each. In a part each class is split by Dir(alpha)
    among the clients that do not have an equal share of it yet; all is drawn again if a client has less than half of
    such a share. The code's numbers have a seed of their own: here they are drawn from `rng`.
    """
    order, dealt = rng.permutation(len(pool.labels)), []
    ends = [*range(0, clients, _GROUP), clients]
    for first, end in pairwise(ends):
        members = order[first * len(order) // clients : end * len(order) // clients]
        share = len(members) / (end - first)
        for _ in range(_DRAWS):
            parts: list[list[np.ndarray]] = [[] for _ in range(end - first)]
            sizes = np.zeros(end - first)
            for label in range(len(pool.classes)):
                chosen = members[pool.labels[members] == label]
                shares = rng.dirichlet(np.full(end - first, alpha)) * (sizes < share)
                cuts = (np.cumsum(shares / shares.sum()) * len(chosen)).astype(int)[:-1]
                for client, positions in enumerate(np.split(chosen, cuts)):
                    parts[client].append(positions)
                    sizes[client] += len(positions)
            if sizes.min() >= share // 2:
                break
        else:
            raise InputError(
                f"data.partition.alpha = {alpha:g}: in {_DRAWS} draws a client always had less than half of an equal "
                "share; set a larger alpha, or more images."
            )
        dealt += [np.concatenate(part) for part in parts]
    return Split(dealt)

"""Each node's test images: drawn by its own label distribution, or dealt class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..streams import numpy_stream
from .splits import Drawn, Pool, allocate


@dataclass(frozen=True)
class DrawnTests:
    """Each node's test images, drawn when they are needed."""

    train_parts: Drawn
    train: Pool
    test: Pool
    size: int
    seed: int

    def __len__(self) -> int:
        return len(self.train_parts)

    def __getitem__(self, node: int) -> np.ndarray:
        part = self.train_parts[node]
        prior = np.bincount(self.train.labels[part], minlength=len(self.train.classes)) / len(part)
        return draw_node_test(
            self.train, part, prior, self.test, self.size, numpy_stream(self.seed, 0, node, "node-test")
        )


def draw_node_test(
    pool: Pool, part: np.ndarray, prior: np.ndarray, test: Pool, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw a node's test images, without replacement. Classes follow its prior; in each class, domains follow its
    training images.

    For a class without training images, domains follow all its training images. If the test set has too few images of a
    class, the node gets fewer images of all classes, so that the proportions stay the same.
    """
    classes, domains = len(test.classes), len(test.domain_names)
    held = np.bincount(pool.domains[part] * classes + pool.labels[part], minlength=classes * domains)
    held = held.reshape(domains, classes).astype(np.float64)
    overall = held.sum(1, keepdims=True) / len(part)
    per_class = held.sum(0, keepdims=True)
    within = np.where(per_class > 0, held / np.maximum(per_class, 1), overall)
    wanted = (within * prior).ravel()
    cells = np.flatnonzero(wanted > 0)
    members = [np.flatnonzero(test.domains * classes + test.labels == cell) for cell in cells]
    available = np.array([len(m) for m in members])
    shares = np.where(available > 0, wanted[cells], 0)
    prior = shares / max(shares.sum(), np.finfo(np.float64).tiny)
    if not prior.any():
        raise InputError("data: the test set has no image of any training class of one of the nodes.")
    fits = int(min(np.floor(available[prior > 0] / prior[prior > 0]).min(), size))
    chosen = allocate(prior, max(fits, 1), available)
    return np.sort(np.concatenate([rng.permutation(m)[:c] for m, c in zip(members, chosen, strict=True)]))


def dealt_tests(
    parts: list[np.ndarray], pool: Pool, test: Pool, size: int | None, key: str = "data.node_test"
) -> list[np.ndarray]:
    """Return each node's test images of the classes that it trains on, in the order of the test set; no image twice.

    `size`: so many images of each class, node i those from `i * size` on, as in FedProto's code; None: an equal share
    of each class, n_c // nodes images, which one owner after another takes, as in FedGen's code. `key`: that of `size`.
    Raises InputError for a class that has too few test images.
    """
    members = [np.flatnonzero(test.labels == label) for label in range(len(test.classes))]
    owned = [np.unique(pool.labels[part]) for part in parts]
    for label in np.unique(np.concatenate(owned)).tolist():
        if len(members[label]) < len(parts) * (size or 1):
            said = "data.node_test_by = 'owned'" if size is None else f"{key} = {size}"
            raise InputError(
                f"{said}: {len(parts)} nodes need {len(parts) * (size or 1)} test images of each class, and "
                f"{test.classes[label]!r} has {len(members[label])}; lower the number of nodes"
                + ("." if size is None else f", or {key}.")
            )
    counts = np.array([len(m) // len(parts) if size is None else size for m in members])
    taken = np.zeros(len(members), np.int64)
    found = []
    for node, labels in enumerate(owned):
        first = taken if size is None else node * counts
        found.append(np.sort(np.concatenate([members[c][first[c] : first[c] + counts[c]] for c in labels])))
        taken[labels] += counts[labels]
    return found

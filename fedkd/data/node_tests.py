"""Each node's test images, which follow its own label distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..streams import numpy_stream
from .partitions import Drawn, Pool, allocate


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

"""Means of a model's outputs (logits, features) on the images of each class, on a node and over nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from ..messages.payload import ArraySpec, Expected, Payload


class ClassMeans:
    """Sums vectors by class. Counts start at 0. A class without images has no mean: its row and its count are 0.

    `sums`, C x D, and `counts`, C, float64: what was added before, to go on with.
    """

    def __init__(self, classes: int, sums: Tensor | None = None, counts: Tensor | None = None) -> None:
        self.classes = classes
        self.sums = sums
        self.counts = torch.zeros(classes, dtype=torch.float64) if counts is None else counts

    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Add a batch: vectors, B x D, and their labels, B."""
        vectors, labels = vectors.detach().cpu().double(), labels.cpu()
        if self.sums is None:
            self.sums = torch.zeros(self.classes, vectors.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, labels, vectors)
        self.counts += torch.bincount(labels, minlength=self.classes)

    def payload(self, kind: str, *, counts: bool = False) -> Payload:
        """Return the means, C x D, as arrays of a kind, with a mask of the classes that have images, C.

        With `counts`, the number of images of each class replaces the mask.
        """
        assert self.sums is not None, "no batch was added"
        means = (self.sums / self.counts.clamp(min=1)[:, None]).float()
        which = {"counts": self.counts.int()} if counts else {"present": (self.counts > 0).to(torch.uint8)}
        payload = Payload(statistics=which)
        setattr(payload, kind, {"means": means})
        return payload


def expected_means(kind: str, classes: int, width: int, *, counts: bool = False) -> Expected:
    """Return the `Expected` of a `ClassMeans.payload`."""
    if counts:
        which = ArraySpec((classes,), torch.int32, counts=True)
    else:
        which = ArraySpec((classes,), torch.uint8, between=(0, 1))
    expected = Expected(statistics={"counts" if counts else "present": which})
    return dataclasses.replace(expected, **{kind: {"means": ArraySpec((classes, width))}})  # type: ignore[arg-type]


def mean_over_nodes(means: Mapping[int, Tensor], weights: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the weighted mean over nodes of each class's row, C x D, and the classes that any node has, C (bool).

    `weights`: C for each node; 0 for a class that the node lacks, so that its row has no effect.
    """
    total = torch.stack([means[n].double() * weights[n].double()[:, None] for n in means]).sum(0)
    mass = torch.stack([weights[n].double() for n in means]).sum(0)
    return (total / mass.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).float(), mass > 0

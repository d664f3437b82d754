"""Strata: groups of samples by their labels, which partitions, the public set and tests draw from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .spec import Task

_BINS = 10  # of a target
_NONE = "none"


class Strata(NamedTuple):
    """The groups of samples: `names`, and how a sample's group is found.

    `edges`: of a target, the borders between its bins. `order`: of several labels, the labels from the rarest on.
    """

    task: Task
    names: tuple[str, ...]
    edges: np.ndarray = np.empty(0)
    order: np.ndarray = np.empty(0, np.int64)

    def of(self, labels: np.ndarray) -> np.ndarray:
        """Return the group of each sample, int64, N, as a position in `names`.

        Classes are their own groups. A sample with several labels is in the group of its rarest one, without any in the
        last group. The first target of a sample is in one of ten bins.
        """
        if self.task == "classification":
            return labels
        if self.task == "regression":
            return np.searchsorted(self.edges, labels[:, 0], side="right")
        ranked = labels[:, self.order] > 0
        return np.where(ranked.any(1), self.order[ranked.argmax(1)], len(self.names) - 1)


def strata_of(labels: np.ndarray, task: Task, classes: tuple[str, ...]) -> Strata:
    """Return the groups of training samples with these labels; bins have equally many of them, where values differ."""
    if task == "classification":
        return Strata(task, classes)
    if task == "multilabel":
        return Strata(task, (*classes, _NONE), order=np.argsort(labels.sum(0), kind="stable"))
    edges = np.unique(np.quantile(labels[:, 0], np.arange(1, _BINS) / _BINS)) if len(labels) else np.empty(0)
    names = [f"< {edge:.6g}" for edge in edges]
    return Strata(task, (*names, f">= {edges[-1]:.6g}" if len(edges) else "any"), edges=edges)

"""Training samples in place of a set's test samples: for choosing settings, which must not see the tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import InputError
from .rows import drawn_rows
from .samples import Dataset


def tests_from_training(dataset: Dataset, share: float, name: str, *, by_time: bool) -> Dataset:
    """Return a set whose test samples are a share of its training samples, drawn by class and node; its own are gone.

    Samples that the set names for validation stay. Raises InputError for a set that is split by time, and if none is
    left.
    """
    if by_time:
        raise InputError("data.held_out with data.time: drawn samples are not later ones; use split.")
    train, held = dataset.train, dataset.validation
    own = np.arange(len(train.labels)) if held is None else np.flatnonzero(~held)
    labels = train.labels[own] if train.labels.ndim == 1 else None
    nodes = None if dataset.nodes is None else dataset.nodes[0][own]
    is_test = np.zeros(len(train.labels), bool)
    is_test[own] = drawn_rows(labels, nodes, share, len(own))
    if not is_test.any():
        raise InputError(f"data.held_out = {share:g}: {name} has too few training samples to hold some out.")
    return replace(
        dataset,
        train=train.take(~is_test),
        test=train.take(is_test),
        nodes=None if dataset.nodes is None else (dataset.nodes[0][~is_test], dataset.nodes[0][is_test]),
        validation=None if held is None else held[~is_test],
        notes=(*dataset.notes, f"{int(is_test.sum())} training samples of {name} are its tests (data.held_out)"),
    )

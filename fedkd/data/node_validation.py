"""Each node's validation samples: a share of its training samples, or the rows that a file names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from ..streams import numpy_stream
from .federated_data import Ragged
from .samples import Dataset, Samples
from .splits import Drawn

KEY = "data.node_validation"


def held_out(labels: np.ndarray, share: float, seed: int, node: int) -> np.ndarray:
    """Return which of a node's training samples are for validation, bool, N: a share of each class, or stratum.

    One sample at least of two or more, and never all. Of a class it is its share, rounded down or up by chance.
    """
    held, count = np.zeros(len(labels), bool), len(labels)
    if count < 2:
        return held
    rng = numpy_stream(seed, 0, node, "node-validation")
    order = rng.permutation(count)
    order = order[np.argsort(labels[order], kind="stable")]
    total = min(max(round(share * count), 1), count - 1)
    held[order[(np.arange(total) * count + rng.integers(count)) // total]] = True  # every so many of a class
    return held


def hold_out(
    parts: Sequence[np.ndarray] | Drawn, labels: np.ndarray, share: float, seed: int
) -> tuple[list[np.ndarray], Ragged]:
    """Return each node's positions without those of its validation samples, and these.

    Raises InputError if nodes share samples.
    """
    if isinstance(parts, Drawn):
        raise InputError(
            f"{KEY} = {share:g}: with data.partition.scheme = 'drawn' nodes share samples, so one node would train on "
            "what another one validates with; use another scheme."
        )
    held = [held_out(labels[part], share, seed, node) for node, part in enumerate(parts)]
    left = [part[~out] for part, out in zip(parts, held, strict=True)]
    return left, Ragged.of([part[out] for part, out in zip(parts, held, strict=True)])


def named_rows(sets: Sequence[Dataset], config: DataConfig) -> np.ndarray | None:
    """Return which training samples of all sets, pooled, a file names as validation ones, bool, N; None for none.

    Raises InputError if the config takes a share of the training samples too.
    """
    if all(one.validation is None for one in sets):
        return None
    if config.node_validation is not None:
        raise InputError(f"{KEY}: data.split = {config.split!r} names validation rows already; remove one of them.")
    empty = [np.zeros(len(one.train.labels), bool) if one.validation is None else one.validation for one in sets]
    return np.concatenate(empty)


def refuse_unheld(config: DataConfig, count: int) -> None:
    """Raise InputError for validation rows of a partition whose nodes are not the holders of the rows."""
    assert config.partition is not None
    raise InputError(
        f"data.split = {config.split!r}: {count} rows are for the validation of who has them, but "
        f"data.partition.scheme = {config.partition.scheme!r} gives rows to other nodes; set data.node and the scheme "
        f"'natural', or {KEY} and no such rows."
    )


def behind(train: Samples, more: Samples) -> Samples:
    """Return samples with others behind them."""
    return Samples(np.concatenate([train.inputs, more.inputs]), np.concatenate([train.labels, more.labels]))

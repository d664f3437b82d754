"""What models predict besides one class: several labels, each there or not, or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, some
from .moments import or_one
from .samples import Dataset, first_places, odd_labels
from .spec import DataSpec, Task


def label_key(config: SetsConfig, place: int) -> str:
    """Return the key that names a column of labels."""
    return "data.label" if isinstance(config.label, str) else f"data.label[{place}]"


def refuse_odd_labels(labels: np.ndarray, task: Task, key: str, where: str) -> None:
    """Raise InputError for labels that are not 0 or 1, and for targets that are not finite or too large."""
    odd, valid = odd_labels(labels, task)
    if odd.any():
        raise InputError(
            f"{key}: {int(odd.sum())} values of {where} are not {valid}, such as {labels[odd][0]:g}{first_places(odd)}."
        )


def refuse_unlearned(labels: np.ndarray, is_test: np.ndarray, classes: Sequence[str], where: str, key: str) -> None:
    """Raise InputError for classes of test samples that no training sample has, if nothing names the classes."""
    if lacking := sorted(set(labels[is_test].tolist()) - set(labels[~is_test].tolist())):
        raise InputError(
            f"{where} has {len(lacking)} classes in its test samples only: {some([classes[one] for one in lacking])}; "
            f"if that is right, name all classes in {key}."
        )


def in_task(dataset: Dataset, config: SetsConfig) -> Dataset:
    """Return a set whose description has the task of a config, and the units of its targets."""
    if config.task == "classification":
        return dataset
    units = tuple(config.units.get(name, "") for name in dataset.classes)
    more = {"task": config.task, "units": units if any(units) else ()}
    return replace(dataset, spec=dataset.about.model_copy(update=more))


def target_moments(labels: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and population deviation of each target of training samples; empty for another task."""
    if spec.task != "regression":
        return np.zeros(0), np.ones(0)
    mean = labels.mean(axis=0)
    return mean, or_one(labels.std(axis=0), mean)

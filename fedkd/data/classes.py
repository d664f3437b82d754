"""Classes go by name: labels of a set become positions in the classes of a federation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError, some
from .samples import Dataset, Samples


def in_classes(dataset: Dataset, classes: Sequence[str], key: str, whose: str, fix: str) -> Dataset:
    """Return a set with its labels as positions in `classes`. It may lack some of them, and have another order.

    Raises InputError for a class that is not in `classes`; `key` and `whose` name the set and the classes, `fix` says
    what to do.
    """
    if dataset.classes == tuple(classes):
        return dataset
    if dataset.about.task != "classification":
        return _in_order(dataset, classes, key, whose)
    place = {name: number for number, name in enumerate(classes)}
    if unknown := [name for name in dataset.classes if name not in place]:
        raise InputError(f"{key} has the classes {some(unknown)}, which {whose} lack ({some(classes)}); {fix}.")
    numbers = np.array([place[name] for name in dataset.classes])
    train, test = (Samples(part.inputs, numbers[part.labels]) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, classes=tuple(classes))


def _in_order(dataset: Dataset, names: Sequence[str], key: str, whose: str) -> Dataset:
    """Return a set with several labels or targets in another order. Raises InputError if they have other names."""
    if set(dataset.classes) != set(names):
        raise InputError(f"{key} has the labels {some(dataset.classes)}; {whose} have {some(list(names))}.")
    order = [dataset.classes.index(name) for name in names]
    train, test = (Samples(part.inputs, part.labels[:, order]) for part in (dataset.train, dataset.test))
    units = tuple(dataset.about.units[place] for place in order) if dataset.about.units else ()
    spec = dataset.about.model_copy(update={"units": units})
    return replace(dataset, train=train, test=test, classes=tuple(names), spec=spec)


def same_classes(sets: Sequence[Dataset], names: Sequence[str]) -> list[Dataset]:
    """Return the domains of a federation with the classes of the first one; an order that differs is mapped.

    Raises InputError if the sets have not the same class names.
    """
    first = sets[0]
    for dataset, name in zip(sets, names, strict=True):
        for one, its, other, others in ((dataset, name, first, names[0]), (first, names[0], dataset, name)):
            if lacking := [c for c in one.classes if c not in other.classes]:
                raise InputError(
                    f"data.names: {others} lacks the classes {some(lacking)} of {its}; all domains of a federation "
                    "must have the same classes, by name."
                )
    return [in_classes(one, first.classes, "data.names", "the others", "") for one in sets]

"""Sets of one federation in one description: columns by name, one order of categories and words, one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError, some
from .samples import Dataset, Samples
from .spec import UNKNOWN, DataSpec
from .table_columns import is_number, number_as_text
from .tokens import SPECIAL


def common_spec(sets: Sequence[Dataset], names: Sequence[str]) -> DataSpec:
    """Return the description that sets have in common: with the categories and words of all, and the largest length.

    Raises InputError, which names the set, for one that differs from the first one in anything else.
    """
    first = sets[0].about
    for name, other in zip(names[1:], sets[1:], strict=True):
        if differences := first.misfit(other.about):
            raise InputError(f"data.names: {name} does not fit {names[0]}: {some(differences, 5)}.")
    specs = [one.about for one in sets]
    if first.kind == "table":
        columns = []
        for column in first.columns:
            same = [one for spec in specs for one in spec.columns if one.name == column.name]
            categories = sorted({name for one in same for name in one.categories or ()})
            columns.append(column.model_copy(update={"categories": tuple(categories)}) if column.categories else column)
        return first.model_copy(update={"columns": tuple(columns)})
    if first.kind == "tokens" and first.learned:
        words = {word for spec in specs for word in spec.words} - set(SPECIAL)
        first = first.model_copy(update={"words": (*SPECIAL, *sorted(words))})
    if first.kind in ("tokens", "series"):
        longest = max(spec.shape[-1] for spec in specs)
        return first.model_copy(update={"shape": (*first.shape[:-1], longest)})
    return first


def in_spec(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Return a set as another description says, which fits it: its columns in that order, categories and words by name.

    Categories that the description lacks become missing ones, words unknown ones; what is shorter is padded.
    """
    own = dataset.about
    if own == spec or spec.kind in ("image", "array"):
        return dataset

    def changed(inputs: np.ndarray) -> np.ndarray:
        if spec.kind == "table":
            return _columns(inputs, own, spec)
        if own.words != spec.words:
            place = {word: number for number, word in enumerate(spec.words)}
            inputs = np.array([place.get(word, UNKNOWN) for word in own.words], np.int64)[inputs]
        more = max(0, spec.shape[-1] - inputs.shape[-1])
        widths = [(0, 0)] * (inputs.ndim - 1) + [(0, more)]
        return np.pad(inputs, widths, constant_values=0 if spec.kind == "tokens" else np.nan)

    train, test = (Samples(changed(part.inputs), part.labels) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, spec=spec.model_copy(update={"shape": train.inputs.shape[1:]}))


def in_kinds_of(dataset: Dataset, spec: DataSpec) -> Dataset:
    """Return a table whose columns are numeric or categorical as in another description, where values allow it.

    A column without any value has no kind of its own; numbers are categories where all categories are numbers.
    """
    if spec.kind != "table" or dataset.about.kind != "table":
        return dataset
    wanted = {column.name: column.categories for column in spec.columns}
    columns = list(dataset.about.columns)
    parts = [part.inputs.copy() for part in (dataset.train, dataset.test)]
    for place, column in enumerate(columns):
        categories = wanted.get(column.name)
        known = [part[~np.isnan(part[:, place]), place] for part in parts]
        if not any(map(len, known)):
            other: tuple[str, ...] | None = None if categories is None else ()
        elif column.categories is None and categories and all(map(is_number, categories)):
            numbers = np.unique(np.concatenate(known)).tolist()
            for part in parts:
                here = ~np.isnan(part[:, place])
                part[here, place] = np.searchsorted(numbers, part[here, place])
            other = tuple(number_as_text(number) for number in numbers)
        else:
            continue
        columns[place] = column.model_copy(update={"categories": other if column.name in wanted else None})
    train, test = (Samples(new, part.labels) for new, part in zip(parts, (dataset.train, dataset.test), strict=True))
    return replace(dataset, train=train, test=test, spec=dataset.about.model_copy(update={"columns": tuple(columns)}))


def _columns(inputs: np.ndarray, own: DataSpec, spec: DataSpec) -> np.ndarray:
    where = {column.name: place for place, column in enumerate(own.columns)}
    found = np.empty((len(inputs), len(spec.columns)))
    for place, column in enumerate(spec.columns):
        values = inputs[:, where[column.name]]
        names = own.columns[where[column.name]].categories
        if column.categories is not None and names is not None and names != column.categories:
            code = {name: number for number, name in enumerate(column.categories)}
            codes = np.array([*(code.get(name, np.nan) for name in names), np.nan])
            values = codes[np.nan_to_num(values, nan=len(names)).astype(np.int64)]
        found[:, place] = values
    return found

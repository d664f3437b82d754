"""The columns of a table as numbers: types, categories, and what is odd in them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, some
from .rows import KEY, no_number, pandas
from .samples import MOST, first_places
from .spec import Column, DataSpec

if TYPE_CHECKING:
    import pandas as pd

_FEW_VALUES = 20  # a column of so few whole numbers may be meant as categories
_FEW_TEXTS = 50  # more different texts that are nearly all numbers are numbers with typing errors
_NEARLY_ALL = 0.9
_WORDS = 2  # a category of more words, on average, may be a text
_ROWS_A_VALUE = 10  # in a column of which each value belongs to one class, so many on average are no chance


def table_of(
    frame: pd.DataFrame, labels: np.ndarray, is_test: np.ndarray, config: SetsConfig, where: str, notes: list[str]
) -> tuple[np.ndarray, DataSpec]:
    """Return columns as numbers, N x columns, float64, and what they are.

    Adds hints to `notes`. Raises InputError for columns that are no input as they are.
    """
    if not len(frame.columns):
        raise InputError(f"{KEY}: {where} has no column beside {config.label!r} and those that are not used.")
    values, columns = np.empty((len(frame), len(frame.columns))), []
    for place, name in enumerate(frame.columns):
        numbers, categories = _column(frame[name], config, where, notes)
        values[:, place] = numbers
        columns.append(Column(name=name, categories=categories, unit=config.units.get(name, "")))
        if config.task == "classification" and _says_label(numbers[~is_test], labels[~is_test]):
            notes.append(
                f"column {name!r} says the label: each of its values has one class; set data.drop if that is no input"
            )
    return values, DataSpec(kind="table", shape=(len(columns),), columns=tuple(columns))


def _column(
    column: pd.Series, config: SetsConfig, where: str, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return a column as numbers, and its categories, in the order of their codes, or None if it is numeric."""
    types, name = pandas().api.types, str(column.name)
    said, wanted = f"{KEY}: column {name!r} of {where}", config.columns.get(name)
    if isinstance(column.dtype, pandas().CategoricalDtype) and wanted is None:
        wanted, column = "categorical", column.astype(column.cat.categories.dtype)
    if column.isna().all():  # refused when a codec is fitted: another site may have values
        notes.append(f"column {name!r} has no value in any row")
        return np.full(len(column), np.nan), () if wanted == "categorical" else None
    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column):
        raise InputError(f"{said} has dates; make them numbers, or add it to data.drop.")
    numeric = types.is_numeric_dtype(column) and not types.is_bool_dtype(column)
    if wanted == "numeric" and not numeric:
        raise InputError(f"{_key(name)} = 'numeric': {where} has {no_number(column)!r} there.")
    if not numeric and (
        odd := [one for one in column.dropna() if not isinstance(one, str | bool | np.bool_ | int | float)]
    ):
        raise InputError(f"{said} has values of type {type(odd[0]).__name__}; a cell is a number or a text.")
    if numeric and wanted != "categorical":
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        odd_numbers = np.abs(np.nan_to_num(numbers, nan=0.0, posinf=np.inf, neginf=-np.inf)) > MOST
        if odd_numbers.any():
            raise InputError(
                f"{said} has {int(odd_numbers.sum())} values that are infinite or beyond {MOST:g}"
                f"{first_places(odd_numbers)}."
            )
        if wanted is None and types.is_integer_dtype(column):
            _hint(name, np.unique(numbers), len(numbers), notes)
        return numbers, None
    return _categories(column, numeric, config, said, wanted is not None, notes)


def _key(name: str) -> str:
    """Return the key that says the type of a column, as TOML needs it."""
    return f"data.columns.{name}" if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f"data.columns.{name!r}"


def _hint(name: str, different: np.ndarray, rows: int, notes: list[str]) -> None:
    if 2 < len(different) <= _FEW_VALUES:
        notes.append(
            f"column {name!r} has only {len(different)} whole numbers and is taken as numeric; "
            f"{_key(name)} = 'categorical' takes them as categories"
        )
    if len(different) == rows > _FEW_TEXTS and different[-1] - different[0] == rows - 1:
        notes.append(f"column {name!r} numbers the rows; set data.drop if that is no input")


def _categories(
    column: pd.Series, numeric: bool, config: SetsConfig, said: str, chosen: bool, notes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return a column's codes, NaN where a value is missing, and its categories, sorted as texts.

    `chosen`: the config or the file says that it is categorical.
    """
    given = column.dropna()
    if pandas().api.types.is_bool_dtype(column):
        texts = ["true" if one else "false" for one in given]
    elif numeric:
        texts = [number_as_text(one) for one in given]
    else:
        texts = [str(one) for one in given]
    categories, name = sorted(set(texts)), str(column.name)
    if not chosen and not pandas().api.types.is_bool_dtype(column) and not numeric:
        odd = [text for text in categories if not is_number(text)]  # a file with others would have numbers
        mended = [text for text in odd if is_number(text.replace(",", ".").rstrip("% "))]
        few = len(categories) <= _FEW_TEXTS
        if (odd or not few) and len(odd) - len(mended) <= (1 - _NEARLY_ALL) * len(categories):
            example = (mended or odd or categories)[0][:40]
            raise InputError(
                f"{said} looks numeric, but has {example!r} as a text; write 1.5, not 1,5 or 15 %, and nothing where a "
                f"value is missing, or set {_key(name)} = 'categorical'."
            )
        if few and 0 < len(odd) < len(categories) / 2:
            texts_of = some([repr(text) for text in odd], 3)
            notes.append(f"column {name!r} has numbers and the texts {texts_of}; all are taken as categories")
    many = len(categories) > config.max_categories
    if many or (len(categories) == len(column) > _FEW_TEXTS and not chosen):
        fix = f"set data.max_categories = {len(categories)}" if many else f"set {_key(name)} = 'categorical'"
        if sum(len(text.split()) for text in categories) > _WORDS * len(categories):
            fix += f", or data.text = {name!r} if these are texts"
        raise InputError(
            f"{said} has {len(categories)} categories in {len(column)} rows; add it to data.drop, or {fix}."
        )
    place = {category: code for code, category in enumerate(categories)}
    codes = np.full(len(column), np.nan)
    codes[np.flatnonzero(column.notna().to_numpy(dtype=bool))] = [place[text] for text in texts]
    return codes, tuple(categories)


def number_as_text(number: float) -> str:
    """Return a number as the name of a category."""
    return str(int(number)) if number == int(number) else repr(float(number))


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _says_label(column: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether each of a column's values, which are few, belongs to one class."""
    if np.isnan(column).any() or len(labels) < _ROWS_A_VALUE:
        return False
    values = len(np.unique(column))
    if not 1 < values <= len(labels) / _ROWS_A_VALUE:
        return False
    return np.unique(np.stack([column, labels]), axis=1).shape[1] == values

"""The values and names that a method may log: metrics.jsonl can store the values, the figures can read the names."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RunError

_CORE = str(Path(__file__).parent)
_TABLE, _LIST = "a table of numbers with rows of one length", "a list of numbers"
_MAP = "a dict of `points`, N x 2, and `labels`, N whole numbers from 0"
_LARGEST = 1e30  # of a number that is drawn
_MOST_LABELS = 10_000
# The names in a round's log that `figures/` and the report draw, and the form of their values.
DRAWN = {
    "weights": _TABLE,  # nodes x nodes: the weight of each sender (column) for each receiver (row)
    "nodes": _LIST,  # the nodes of the rows and columns of `weights`
    "ensemble_weights": _TABLE,  # classes x teachers
    "teachers": _LIST,  # the teachers of the columns of `ensemble_weights`
    "label_distribution": _LIST,  # a share for each class
    "feature_map": _MAP,
}
_COLUMNS = (("weights", "nodes"), ("ensemble_weights", "teachers"))  # a table, and what its columns are


def plain_value(name: str, value: Any) -> Any:
    """Return a logged value in a form that JSON can store: numbers, texts, lists, dicts. Raises as `Round.log`."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain_value(name, one) for one in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain_value(name, one) for key, one in value.items()}
    if isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    raise RunError(
        f"{_caller()}: log({name!r}, ...): {_shown(value)} cannot be logged; valid are finite numbers, texts, tensors, "
        "arrays, and lists or dicts of them."
    )


def drawable(log: Mapping[str, Any], *names: str) -> bool:
    """Return whether a round's log has all these names with values that the figures can draw."""
    return all(name in log and _has_form(name, log[name]) for name in names) and not any(
        {table, columns} <= set(names) and len(log[table][0]) != len(log[columns]) for table, columns in _COLUMNS
    )


def undrawable(log: Mapping[str, Any]) -> list[str]:
    """Return a text on each value of a round's log that has the name of a figure's values, but another form.

    Weights as a dict are a summary: many nodes' matrix is in a file of its own.
    """
    return [
        f"log({name!r}, {_shown(value)}) is not drawn: the figures need {name!r} to be {DRAWN[name]}"
        for name, value in log.items()
        if name in DRAWN and not _has_form(name, value) and not (name == "weights" and isinstance(value, dict))
    ]


def _has_form(name: str, plain: Any) -> bool:
    if DRAWN[name] == _MAP:
        if not isinstance(plain, dict):
            return False
        points, labels = plain.get("points", []), plain.get("labels", [])
        return (
            _is_table(points)
            and _is_table([labels])
            and len(points[0]) == 2
            and len(points) == len(labels)
            and all(isinstance(label, int) and 0 <= label < _MOST_LABELS for label in labels)
        )
    return _is_table(plain) if DRAWN[name] == _TABLE else _is_table([plain])


def _is_table(rows: Any) -> bool:
    """Return whether a value is a list of lists of numbers, each of one length, at least one."""
    return (
        isinstance(rows, list)
        and len(rows) > 0
        and all(isinstance(row, list) and 0 < len(row) == len(rows[0]) for row in rows)
        and all(isinstance(one, int | float) and abs(one) <= _LARGEST for row in rows for one in row)
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _caller() -> str:
    """Return the file and line of the nearest calling code outside the core."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_CORE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"

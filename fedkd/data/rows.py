"""The columns of a file that say what rows are for: their labels, who has them, and which are for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, nearest, on_one_line, some
from ..streams import numpy_stream
from .samples import first_places
from .tasks import label_key, refuse_odd_labels, refuse_unlearned

if TYPE_CHECKING:
    import pandas as pd

KEY = "data.file"
_TRAIN, _TEST, _VALIDATION = "train", "test", ("validation", "val")
_SECONDS_A_DAY = 86_400.0
_MANY_CLASSES = 50  # more may be numbers


class Rows(NamedTuple):
    """The rows of a file that are used: `kept`, their positions, N; `labels` as `Samples` has them; `is_test`, N.

    `classes`: the names of classes, labels or targets. `nodes`, N: who has each row; None if the file does not say so.
    `is_validation`, N: which of the training rows are for the validation of who has them; None if the file names none.
    """

    kept: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    is_test: np.ndarray
    nodes: np.ndarray | None
    is_validation: np.ndarray | None = None

    def validation_of_training(self) -> np.ndarray | None:
        """Return which of the training rows are for validation; None if the file names no such rows."""
        return None if self.is_validation is None else self.is_validation[~self.is_test]

    def of_parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where in `kept` the training rows are, and where the test rows are."""
        return np.flatnonzero(~self.is_test), np.flatnonzero(self.is_test)

    def nodes_of_parts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return who has the training rows, and who has the test rows; None if the file does not say so."""
        return None if self.nodes is None else (self.nodes[~self.is_test], self.nodes[self.is_test])


def pandas() -> Any:
    """Return the module pandas. Raises InputError if it is not installed."""
    try:
        import pandas as found
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(f"{KEY}: reading tables needs pandas and pyarrow: pip install 'fedkd[tables]'.") from error
    return found


def check_names(columns: Sequence[str], config: SetsConfig, where: str) -> None:
    """Raise InputError for names of columns that a file lacks, has twice, or that mean two things."""
    if twice := sorted({name for name in columns if list(columns).count(name) > 1}):
        raise InputError(f"{KEY}: {where} has {len(twice)} column names twice: {some(twice)}.")
    if config.label is None:
        raise InputError(
            f"data.label is missing: it names the column of {where} that a model predicts; there are "
            f"{some(list(columns))}."
        )
    roles = {key: name for key in ("node", "split", "time", "text") if (name := getattr(config, key))}
    given = {f"data.{key}": name for key, name in roles.items()}
    given |= {label_key(config, place): name for place, name in enumerate(config.labels)}
    given |= {f"data.drop[{i}]": name for i, name in enumerate(config.drop)}
    given |= {f"data.columns.{name}": name for name in config.columns} | {f"data.units.{n}": n for n in config.units}
    for key, name in given.items():
        if name not in columns:
            hint = ""
            if len(columns) == 1 and any(sign in columns[0] for sign in ";\t"):
                hint = "; its columns are not separated by commas"
            raise InputError(f"{key} = {name!r}: {where} has no such column{hint}{nearest(name, columns)}")
    if twice := sorted({name for name in config.labels if config.labels.count(name) > 1}):
        raise InputError(f"data.label names the column {twice[0]!r} twice.")
    if both := sorted(set(config.labels) & set(config.columns)):
        raise InputError(f"data.columns.{both[0]}: it is a label; data.task = {config.task!r} says what labels are.")
    seen: dict[str, str] = dict.fromkeys(config.labels, "label")
    for key, name in roles.items():
        if name in seen:
            raise InputError(f"data.{key} and data.{seen[name]} both name the column {name!r}.")
        seen[name] = key
    for name in config.drop:
        if seen.get(name) in ("label", "text"):
            raise InputError(f"data.drop and data.{seen[name]} both name the column {name!r}.")


def rows_of(
    frame: pd.DataFrame, config: SetsConfig, where: str, notes: list[str], named: Sequence[str] | None = None
) -> Rows:
    """Return what a file's columns say of its rows. `named`: the names of classes, if the file has them.

    Adds to `notes` what is left out. Raises InputError for labels, nodes, parts or times that are missing or odd.
    """
    if len(frame) == 0:
        raise InputError(f"{KEY}: {where} has no rows.")
    absent = frame[config.labels].isna().any(axis=1).to_numpy(dtype=bool)
    if absent.any():
        if not config.drop_unlabelled:
            raise InputError(
                f"data.label = {config.label!r}: {int(absent.sum())} of {len(frame)} rows of {where} have no label"
                f"{first_places(absent)}; set data.drop_unlabelled = true to leave them out."
            )
        notes.append(f"{int(absent.sum())} rows without a label are left out")
    kept = np.flatnonzero(~absent)
    if not len(kept):
        raise InputError(f"data.label = {config.label!r}: no row of {where} has a label.")
    named = named if config.classes is None else config.classes
    if config.task == "classification":
        column = frame[config.label].iloc[kept]
        labels, classes = _labels(column, named, config, where)
        if named is None and not pandas().api.types.is_numeric_dtype(column):
            notes.append(f"labels are names; the classes in their order are {some(list(map(repr, classes)))}")
        notes += [*_many_classes(labels, classes), *_nearly_equal(classes, "classes")]
    else:
        labels, classes = _numbers(frame[config.labels].iloc[kept], config, where), tuple(config.labels)
    nodes = None if config.node is None else _nodes(frame[config.node].iloc[kept], config, where)
    notes += [] if nodes is None else _nearly_equal(np.unique(nodes).tolist(), "nodes")
    is_validation = None
    if config.time is not None:
        is_test, between = _later_rows(frame[config.time].iloc[kept], nodes, config, where)
        if between.any():
            notes.append(
                f"{int(between.sum())} rows are left out, within data.gap = {config.gap:g} of the training rows"
            )
        kept, labels, is_test = kept[~between], labels[~between], is_test[~between]
        nodes = None if nodes is None else nodes[~between]
    elif config.split is not None:
        is_test, is_validation = _said_rows(frame[config.split].iloc[kept], config, where)
    else:
        is_test = drawn_rows(labels if config.task == "classification" else None, nodes, config.test, len(kept))
        if config.text is not None:
            is_test = _together(frame[config.text].iloc[kept].astype(str).to_numpy(dtype=object), is_test, notes)
    training = ~is_test if is_validation is None else ~is_test & ~is_validation
    if not training.any() or not is_test.any():
        raise InputError(f"{KEY}: {where} leaves no {'test' if training.any() else 'training'} rows, of {len(kept)}.")
    if config.task == "classification" and named is None:
        refuse_unlearned(labels, is_test, classes, f"data.label = {config.label!r}: {where}", "data.classes")
    return Rows(kept, labels, classes, is_test, nodes, is_validation)


def _labels(
    column: pd.Series, named: Sequence[str] | None, config: SetsConfig, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels as positions in the classes, and the classes: sorted, numbers by their size."""
    types, key = pandas().api.types, f"data.label = {config.label!r}"
    if types.is_bool_dtype(column):
        names = column.map({True: "true", False: "false"}).astype(str)
        found = sorted(set(names))
    elif types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype=np.float64)
        odd = ~np.isfinite(numbers) | (numbers != np.round(numbers))
        if odd.any():
            raise InputError(
                f"{key}: {int(odd.sum())} labels of {where} are no whole numbers, such as {numbers[odd][0]:g}"
                f"{first_places(odd)}; labels of classes are whole numbers or names. To predict numbers, set "
                'data.task = "regression".'
            )
        names = column.astype(np.int64).astype(str)
        found = [str(number) for number in sorted(set(column.astype(np.int64)))]
    elif types.is_datetime64_any_dtype(column) or not all(
        isinstance(one, str | bool) for one in set(map(_plain, column))
    ):
        raise InputError(f"{key}: {where} has {_example(column)} there; labels of classes are whole numbers or names.")
    else:
        names = column.astype(str)
        found = sorted(set(names))
    if len(found) > config.max_categories:
        raise InputError(
            f"{key}: {where} has {len(found)} different labels; data.max_categories is {config.max_categories}."
        )
    classes = list(named) if named is not None else found
    if unknown := [name for name in found if name not in classes]:
        raise InputError(f"data.classes = {classes}: {where} has other labels: {some(unknown)}.")
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in names], np.int64), tuple(classes)


def _numbers(columns: pd.DataFrame, config: SetsConfig, where: str) -> np.ndarray:
    """Return columns of labels, each 0 or 1, or of targets, N x columns, float64."""
    types, found = pandas().api.types, np.empty(columns.shape)
    for place, name in enumerate(columns.columns):
        column, key = columns[name], f"{label_key(config, place)} = {name!r}"
        if not types.is_numeric_dtype(column):
            kinds = "0 and 1, or true and false" if config.task == "multilabel" else "numbers"
            odd = repr(no_number(column))
            raise InputError(f"{key}: {where} has {odd} there; with data.task = {config.task!r} valid are {kinds}.")
        found[:, place] = column.to_numpy(dtype=np.float64)
        refuse_odd_labels(found[:, place], config.task, key, where)
    return found


def no_number(column: pd.Series) -> str:
    """Return the first value of a column that is no number, as text."""
    given = column.dropna()
    odd = given[pandas().to_numeric(given, errors="coerce").isna().to_numpy(dtype=bool)]
    return on_one_line(str((odd if len(odd) else given).iloc[0]), 40)


def _plain(value: object) -> object:
    """Return a value, or for one that cannot be in a set, its type."""
    return value if isinstance(value, str | bool) else type(value)


def _example(column: pd.Series) -> str:
    return on_one_line(repr(column.dropna().iloc[0]), 40)


def _many_classes(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return a note on so many classes that labels may be numbers to predict."""
    counts = np.bincount(labels)
    alone = int((counts == 1).sum())
    if len(classes) <= _MANY_CLASSES or alone * 5 < len(classes):
        return []
    hint = ' To predict numbers, set data.task = "regression".' if all(map(str.isdecimal, classes)) else ""
    return [f"there are {len(classes)} classes of {len(labels)} rows, {alone} of them with one row.{hint}"]


def _nearly_equal(names: Sequence[str], what: str) -> list[str]:
    """Return a note on names that differ in spaces or capitals only."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(" ".join(name.casefold().split()), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in by_form.values() if len(group) > 1]
    return [f"{what} that differ in spaces or capitals only: {some(alike)}"] if alike else []


def _nodes(column: pd.Series, config: SetsConfig, where: str) -> np.ndarray:
    absent = column.isna().to_numpy(dtype=bool)
    if absent.any():
        raise InputError(
            f"data.node = {config.node!r}: {int(absent.sum())} rows of {where} have no value there"
            f"{first_places(absent)}."
        )
    if pandas().api.types.is_float_dtype(column) and (column == column.round()).all():
        column = column.astype(np.int64)  # 3.0 is node 3
    return np.asarray(column.astype(str).to_numpy(dtype=str))


def _said_rows(column: pd.Series, config: SetsConfig, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return which rows are for tests, and which for validation; None if none is."""
    parts = column.astype(str).str.lower().to_numpy(dtype=str)
    if odd := sorted(set(parts.tolist()) - {_TRAIN, _TEST, *_VALIDATION}):
        raise InputError(
            f"data.split = {config.split!r}: {where} has the values {some(odd)}; valid: train, test, validation."
        )
    is_validation = np.isin(parts, _VALIDATION)
    return np.asarray(parts == _TEST), is_validation if is_validation.any() else None


def drawn_rows(labels: np.ndarray | None, nodes: np.ndarray | None, share: float, count: int) -> np.ndarray:
    """Return which rows are for tests: a fixed draw from each class of each node, or without classes of each node."""
    rng = numpy_stream(0, 0, "server", "test-rows")  # a property of the set: equal for each seed of a run
    labels = np.zeros(count, np.int64) if labels is None else labels
    is_test = np.zeros(len(labels), bool)
    whose = _whose(labels, nodes)
    for cell in np.unique(np.stack([whose, labels]), axis=1).T:
        members = rng.permutation(np.flatnonzero((whose == cell[0]) & (labels == cell[1])))
        is_test[members[: round(share * len(members))]] = True
    return is_test


def _whose(labels: np.ndarray, nodes: np.ndarray | None) -> np.ndarray:
    return np.zeros(len(labels), np.int64) if nodes is None else np.unique(nodes, return_inverse=True)[1]


def _together(texts: np.ndarray, is_test: np.ndarray, notes: list[str]) -> np.ndarray:
    """Return which rows are for tests, with equal texts on the side of the first of them."""
    first: Mapping[str, int] = {text: row for row, text in reversed(list(enumerate(texts)))}
    moved = is_test[[first[text] for text in texts]]
    if repeated := len(texts) - len(first):
        notes.append(f"{repeated} texts are repeated; equal ones are all training or all test texts")
    return np.asarray(moved)


def _later_rows(
    column: pd.Series, nodes: np.ndarray | None, config: SetsConfig, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are for tests, the last share of each node by time, and which are left out for the gap.

    Rows of equal time are on one side: that of training.
    """
    times = _times(column, config, where)
    is_test, between = np.zeros(len(times), bool), np.zeros(len(times), bool)
    whose = _whose(times, nodes)
    for node in range(int(whose.max()) + 1):
        members = np.flatnonzero(whose == node)
        own = np.sort(times[members])
        if (tests := round(config.test * len(own))) == 0:
            continue
        border = own[max(len(own) - tests - 1, 0)]
        is_test[members] = times[members] > border + config.gap
        between[members] = (times[members] > border) & ~is_test[members]
    return is_test, between


def _times(column: pd.Series, config: SetsConfig, where: str) -> np.ndarray:
    """Return times as numbers; dates as days."""
    key, module = f"data.time = {config.time!r}", pandas()
    absent = column.isna().to_numpy(dtype=bool)
    if absent.any():
        raise InputError(f"{key}: {int(absent.sum())} rows of {where} have no value there{first_places(absent)}.")
    if module.api.types.is_numeric_dtype(column):
        return np.asarray(column.to_numpy(dtype=np.float64))
    try:
        dates = module.to_datetime(column, format="ISO8601", utc=True)
    except Exception as error:  # pandas raises many types for what is no date
        raise InputError(
            f"{key}: {where} has {_example(column)} there; times are numbers or dates such as 2001-12-31 23:59."
        ) from error
    start = module.Timestamp(0, tz="UTC")
    return np.asarray((dates - start).dt.total_seconds().to_numpy(dtype=np.float64) / _SECONDS_A_DAY)

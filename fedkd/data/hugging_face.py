"""Sets in folders that Hugging Face's `datasets` has written with `save_to_disk`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, on_one_line, reason_of, some
from .arrays import channels_first
from .pictures import alike, open_picture, pixels_of
from .rows import KEY, check_names, rows_of
from .samples import Dataset, Samples, as_float32
from .series import as_series, padded_series
from .spec import DataSpec
from .table_files import from_frame
from .tasks import in_task, label_key
from .tokens import ids_as_tokens

MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")  # files of such a folder
_TESTS = ("test", "validation")  # splits that are test parts, the first one that is there
_PART = "__split"  # a column that says which split a row is of


def from_saved(folder: Path, config: SetsConfig) -> Dataset:
    """Return the set in a folder, whose columns the config names; its files are mapped and read once.

    `ClassLabel` says the classes. One column of images, or of lists of numbers (series, N x C x T or N x T), is the
    input; otherwise numbers and texts are a table, or with `data.text` texts. Of several splits, `train` and `test` are
    used. Raises InputError for a column of another type, and for what the other files refuse.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{KEY}: {folder} needs Hugging Face's datasets: pip install 'fedkd[hub]'.") from error
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # it raises many types for damaged folders
        raise InputError(f"{KEY}: {folder} cannot be read: {on_one_line(reason_of(error), 200)}.") from error
    notes: list[str] = []
    table, tests = found, None
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            raise InputError(f"{KEY}: {folder} has no split 'train'; it has {some(list(found))}.")
        table, chosen = found["train"], next((name for name in _TESTS if name in found), None)
        if chosen is not None and config.split is None and config.time is None:
            if found[chosen].features != table.features:
                raise InputError(f"{KEY}: the splits train and {chosen} of {folder} have unlike columns.")
            tests = len(found[chosen])
            table = datasets.concatenate_datasets([table, found[chosen]])
        if others := [name for name in found if name != "train" and (tests is None or name != chosen)]:
            notes.append(f"the splits {some(others)} are not used")
    return _of_table(table, tests, config, str(folder), notes)


def _of_table(table: Any, tests: int | None, config: SetsConfig, where: str, notes: list[str]) -> Dataset:
    """Return the set in a `datasets.Dataset`; its last `tests` rows are the test part; None: the config says which."""
    columns = list(table.column_names)
    check_names(columns, config, where)
    roles = {f"data.{key}": name for key in ("node", "split", "time") if (name := getattr(config, key))}
    roles = {label_key(config, place): name for place, name in enumerate(config.labels)} | roles
    left = [name for name in columns if name not in config.drop or name in roles.values()]
    inputs = [name for name in left if name not in roles.values()]
    types = {name: _type_of(table.features[name], name, where) for name in left}
    dropped, config = config.drop, config.model_copy(update={"drop": []})
    if config.task == "multilabel" and [types[name] for name in config.labels] == ["classes"]:
        name = config.labels[0]
        table, names = _with_a_column_each(table, name)
        return _of_table(table, tests, config.model_copy(update={"label": names, "drop": dropped}), where, notes)
    plain = [name for name in left if types[name] in ("value", "class")]
    for key, name in roles.items():
        if name not in plain:
            valid = "numbers or texts"
            if key.startswith("data.label") and config.task != "classification":
                valid = "numbers, or one list of ClassLabel" if config.task == "multilabel" else "numbers"
            raise InputError(f"{key} = {name!r}: {where} has {types[name]} there; it must be {valid}.")
    frame = table.select_columns(plain).with_format(None).to_pandas()
    for name in plain:
        if types[name] == "class":
            frame[name] = _named(frame[name], table.features[name].names)
    if tests is not None:
        frame[_PART] = ["train"] * (len(frame) - tests) + ["test"] * tests
        config = config.model_copy(update={"split": _PART})
    classes = None
    if config.task == "classification" and types[config.labels[0]] == "class":
        classes = tuple(table.features[config.labels[0]].names)
    other = [name for name in inputs if types[name] not in ("value", "class")]
    if not other or config.text is not None:
        found = from_frame(frame, config, where, classes)
        return replace(found, notes=(*notes, *found.notes))
    if len(other) > 1:
        raise InputError(
            f"{KEY}: {where} has {len(other)} columns that may be the input: "
            f"{some([f'{name} ({types[name]})' for name in other])}; add those that are not to data.drop."
        )
    name = other[0]
    if unused := [one for one in inputs if one != name]:
        notes.append(f"only the {types[name]} of {name!r} are used, not the columns {some(unused)}")
    rows = rows_of(frame, config, where, notes, classes)
    parts = [rows.kept[part] for part in rows.of_parts()]
    labels = [rows.labels[part] for part in rows.of_parts()]
    spec = None
    if types[name] == "images":
        _check_kind(config, ("image",), name)
        pixels = [_pictures(table, name, part, config, where) for part in parts]
        values = [channels_first(one) for one in pixels]
    else:
        _check_kind(config, ("series", "array", "tokens"), name)
        values, spec = _lists(table, name, parts, config, where, notes)
    train, test = (Samples(one, own) for one, own in zip(values, labels, strict=True))
    nodes, held = rows.nodes_of_parts(), rows.validation_of_training()
    found = Dataset(train, test, rows.classes, spec=spec, nodes=nodes, notes=tuple(notes), validation=held)
    return in_task(found, config)


def _with_a_column_each(table: Any, name: str) -> tuple[Any, list[str]]:
    """Return a table with a column of 0 and 1 for each class, in place of one with lists of classes; and their names.

    A name that another column has gets the list's name before it.
    """
    feature = table.features[name]
    while type(feature).__name__ != "ClassLabel":
        feature = feature.feature
    given = table.select_columns([name]).with_format(None)[:][name]
    held = [set(one or ()) for one in given]
    table = table.remove_columns([name])
    names = [one if one not in table.column_names else f"{name}: {one}" for one in feature.names]
    for number, one in enumerate(names):
        table = table.add_column(one, [int(number in own) for own in held])
    return table, names


def _check_kind(config: SetsConfig, valid: Sequence[str], name: str) -> None:
    if config.kind is not None and config.kind not in valid:
        raise InputError(f"data.kind = {config.kind!r}: the column {name!r} can be {' or '.join(valid)}.")


def _type_of(feature: Any, name: str, where: str) -> str:
    """Return what a column has: value, class, classes (a list of them), images or lists.

    Raises InputError for another type.
    """
    kind = type(feature).__name__
    if kind in ("Value", "ClassLabel", "Image"):
        return {"Value": "value", "ClassLabel": "class", "Image": "images"}[kind]
    inner = feature
    while type(inner).__name__ in ("List", "LargeList", "Sequence"):
        inner = inner.feature
    if type(inner).__name__ == "ClassLabel":
        return "classes"
    if type(inner).__name__ == "Value" and _is_number(inner.dtype):
        return "lists"
    if type(inner).__name__ == "Array2D" and inner is feature and _is_number(inner.dtype):
        return "lists"
    raise InputError(
        f"{KEY}: column {name!r} of {where} is of type {on_one_line(repr(feature), 80)}; valid are Value, ClassLabel, "
        "Image, and lists of numbers. Add it to data.drop if that is no input."
    )


def _is_number(dtype: str) -> bool:
    return dtype.startswith(("float", "int", "uint"))


def _named(codes: Any, names: Sequence[str]) -> Any:
    """Return the names of codes; -1, as in unlabelled test sets of the hub, is a missing one."""
    return codes.map(lambda code: None if code != code or code < 0 else names[int(code)])


def _pictures(table: Any, name: str, rows: np.ndarray, config: SetsConfig, where: str) -> np.ndarray:
    """Return the images of these rows, N x H x W [x 3]; each is decoded once."""
    import datasets

    column = table.select_columns([name]).cast_column(name, datasets.Image(decode=False))
    found = []
    for row in rows.tolist():
        cell = column[row][name]
        if cell is None:
            raise InputError(f"{KEY}: column {name!r} of {where} has no image in row {row}; data.drop has no rows.")
        try:
            source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else Path(cell["path"])
            with open_picture(source) as picture:
                found.append(pixels_of(picture, config.size))
        except Exception as error:  # Pillow's readers raise many types for damaged images
            reason = on_one_line(reason_of(error) or type(error).__name__, 200)
            raise InputError(
                f"{KEY}: the image in row {row} of {where}, column {name!r}, cannot be read: {reason}."
            ) from error
    try:
        return alike(found)
    except ValueError as error:
        raise InputError(f"{KEY}: column {name!r} of {where}: {error}; set data.size to give them one size.") from error


def _lists(
    table: Any, name: str, parts: Sequence[np.ndarray], config: SetsConfig, where: str, notes: list[str]
) -> tuple[list[np.ndarray], DataSpec]:
    """Return lists of numbers as series, or as free arrays or tokens if `data.kind` says so."""
    column = table.select_columns([name]).with_format(None)
    cells = [[_numbers(column[row][name], name, row, where) for row in part.tolist()] for part in parts]
    shapes = {cell.shape for part in cells for cell in part}
    if config.kind == "array":
        if len(shapes) > 1:
            raise InputError(f"{KEY}: column {name!r} of {where} has arrays of {len(shapes)} shapes: {_few(shapes)}.")
        values = [as_float32(np.stack(part)) for part in cells]
        return values, DataSpec(kind="array", shape=values[0].shape[1:])
    whole = shapes and all(cell.ndim == 1 and (cell == np.round(cell)).all() for part in cells for cell in part)
    if config.kind == "tokens":
        if not whole:
            raise InputError(f"data.kind = 'tokens': column {name!r} of {where} has no lists of whole numbers.")
        texts, ends = zip(*(padded_series(part) for part in cells), strict=True)
        ids = [np.nan_to_num(one.reshape(len(one), -1)).astype(np.int64) for one in texts]
        return ids_as_tokens(ids, ends, None, config, where, notes)
    if whole and config.kind is None:
        notes.append(f"the whole numbers of {name!r} are taken as a series; data.kind = 'tokens' takes them as ids")
    channels = {cell.shape[0] if cell.ndim == 2 else 1 for part in cells for cell in part}
    if {cell.ndim for part in cells for cell in part} - {1, 2} or len(channels) > 1:
        raise InputError(
            f"{KEY}: column {name!r} of {where} has series of unlike shapes, channels x T: {_few(shapes)}."
        )
    padded, lengths = zip(*(padded_series(part) for part in cells), strict=True)
    values = as_series(padded, lengths, config, where, notes)
    return values, DataSpec(kind="series", shape=values[0].shape[1:])


def _few(shapes: set[tuple[int, ...]]) -> str:
    return some([" x ".join(map(str, shape)) for shape in sorted(shapes)], 4)


def _numbers(cell: Any, name: str, row: int, where: str) -> np.ndarray:
    try:
        return np.array(cell, np.float64)  # None becomes NaN
    except (TypeError, ValueError) as error:
        raise InputError(f"{KEY}: column {name!r} of {where} has channels of unlike lengths in row {row}.") from error

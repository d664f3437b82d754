"""Sets of arrays, wherever they come from: what they are, their labels, classes and nodes."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, on_one_line, some
from .samples import LARGEST, SOURCE, Dataset, Samples, as_float32
from .series import as_series
from .spec import Column, DataSpec, Kind, Task
from .tasks import in_task, refuse_odd_labels, refuse_unlearned
from .tokens import ids_as_tokens

NEEDED = ("x_train", "y_train", "x_test", "y_test")
NAMES = (
    *NEEDED, "classes", "kind", "length_train", "length_test", "node_train", "node_test", "node_names", "columns",
    "channels", "words",
)  # fmt: skip
_PARTS = ("train", "test")
_IMAGES = ("uint8", "uint16", "float16", "float32", "float64")
_MOST_UNNAMED = 1000  # a larger label needs as many samples, or names in `classes`
_MOST_CHANNELS_UNSEEN = 4  # square images of more channels, and one or three rows, have their channels first


class _Inputs(NamedTuple):
    parts: list[np.ndarray]  # as `DataSpec` says
    spec: DataSpec | None  # of images, their arrays say it


def from_arrays(arrays: Mapping[str, np.ndarray], config: SetsConfig, where: str, *, first: bool = False) -> Dataset:
    """Return the set of these arrays: `x_train`, `y_train`, `x_test`, `y_test`, and others that `NAMES` has.

    `kind`, or `data.kind`: image: uint8, uint16 or floats, N x H x W [x C], with `first` N x C x H x W; series: N x C x
    T, steps in `length_train` and `length_test`; tokens: whole numbers, N x L, ids of `words`; table: N x columns;
    array: any. Without both, uint8 and uint16 are images, and arrays with `length_train` series or, of whole numbers,
    tokens. `node_train`, `node_test`: who has a sample, names or positions in `node_names`. `where` names the set in
    errors. Raises InputError for arrays that do not fit together.
    """
    arrays = {name: one.astype(one.dtype.newbyteorder("="), copy=False) for name, one in arrays.items()}
    kind = _kind_of(arrays, config, where)
    for part in _PARTS:
        inputs, own = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if inputs.ndim == 0 or inputs.dtype.kind not in "biuf":
            raise InputError(f"{SOURCE}: x_{part} in {where} is {_form(inputs)}; it must be numbers, N x ....")
        if config.task != "classification":
            _check_numbers(own, arrays["y_train"], config.task, f"y_{part}", where, len(inputs))
        elif own.ndim != 1 or own.dtype.kind not in "iuSU" or len(own) != len(inputs) or len(own) == 0:
            are_whole = own.dtype.kind == "f" and own.ndim == 1 and bool((own == np.round(own)).all())
            other = " To predict numbers or several labels, set data.task." if own.dtype.kind in "fb" else ""
            other = " Write y.astype(int)." + other if are_whole else other
            raise InputError(
                f"{SOURCE}: y_{part} in {where} must have one whole number or name for each image of x_{part}, or for "
                f"each other sample; it is {_form(own)}, x_{part} is {_form(inputs)}.{other}"
            )
    notes: list[str] = []
    if kind == "image":
        found = _images(arrays, where, first, notes)
    elif kind == "series":
        found = _series(arrays, config, where, notes)
    elif kind == "tokens":
        words = _names(where, "words", arrays["words"]) if "words" in arrays else None
        found = _Inputs(*ids_as_tokens(_both(arrays, "x"), _both(arrays, "length"), words, config, where, notes))
    else:
        found = _table(arrays, where) if kind == "table" else _free(arrays)
    named = _names(where, "classes", arrays["classes"]) if "classes" in arrays else None
    given = [arrays["y_train"], arrays["y_test"]]
    labels, classes = (_labels if config.task == "classification" else _targets)(where, given, named)
    if config.task == "classification" and named is None:
        if given[0].dtype.kind in "SU":
            both, is_test = np.concatenate(labels), np.arange(sum(map(len, labels))) >= len(labels[0])
            refuse_unlearned(both, is_test, classes, f"{SOURCE}: {where}", "an array `classes`")
        elif empty := np.flatnonzero(np.bincount(labels[0], minlength=len(classes)) == 0).tolist():
            names = some([classes[one] for one in empty])
            notes.append(f"{len(empty)} of {len(classes)} classes have no training sample: {names}")
    train, test = (Samples(*one) for one in zip(found.parts, labels, strict=True))
    whole = Dataset(train, test, classes, spec=found.spec, nodes=_nodes(arrays, where), notes=tuple(notes))
    return in_task(whole, config)


def _form(array: np.ndarray) -> str:
    return f"{array.dtype}, {' x '.join(map(str, array.shape)) or 'one value'}"


def _check_numbers(own: np.ndarray, first: np.ndarray, task: Task, name: str, where: str, count: int) -> None:
    """Raise InputError for labels that are not 0 or 1 for each class, or targets that are no numbers."""
    if count == 0:
        raise InputError(f"{SOURCE}: {name} in {where} has no sample.")
    one_each = own.ndim == 2 or (own.ndim == 1 and task == "regression")
    if own.shape[1:] != first.shape[1:]:
        raise InputError(f"{SOURCE}: {name} in {where} is {_form(own)}, but y_train is {_form(first)}.")
    if not one_each or own.dtype.kind not in "biuf" or len(own) != count:
        valid = "0 or 1, N x labels" if task == "multilabel" else "numbers, N or N x targets"
        raise InputError(
            f"{SOURCE}: {name} in {where} is {_form(own)}; with data.task = {task!r} it must be {valid}, for each of "
            f"{count} samples."
        )
    refuse_odd_labels(own.astype(np.float64), task, f"{SOURCE}: {name}", where)


def _targets(
    where: str, given: Sequence[np.ndarray], named: list[str] | None
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return labels or targets of both parts, N x their number, and their names."""
    found = [one.astype(np.float64).reshape(len(one), -1) for one in given]
    count = found[0].shape[1]
    names = named if named is not None else [str(number) for number in range(count)]
    if len(names) != count or len(set(names)) < count:
        raise InputError(
            f"{SOURCE}: classes in {where} has {len(set(names))} different names; y_train has {count} columns."
        )
    return found, tuple(names)


def _both(arrays: Mapping[str, np.ndarray], name: str) -> list[Any]:
    return [arrays.get(f"{name}_{part}") for part in _PARTS]


def _kind_of(arrays: Mapping[str, np.ndarray], config: SetsConfig, where: str) -> Kind:
    said, x = None, arrays["x_train"]
    if "kind" in arrays:
        names = _names(where, "kind", np.atleast_1d(arrays["kind"]))
        said = names[0] if len(names) == 1 else None
        if said not in get_args(Kind):
            raise InputError(f"{SOURCE}: kind in {where} is {on_one_line(str(names), 60)}; valid: {_kinds()}.")
        if config.kind not in (None, said):
            raise InputError(f"data.kind = {config.kind!r}, but kind in {where} is {said!r}; remove data.kind.")
    if kind := config.kind or said:
        return kind  # type: ignore[return-value]
    if "length_train" in arrays or "length_test" in arrays:
        return "tokens" if x.ndim == 2 and x.dtype.kind in "iu" else "series"
    if x.dtype.name in LARGEST and x.ndim in (3, 4):
        return "image"
    raise InputError(
        f"{SOURCE}: x_train in {where} is {_form(x)}; it must be uint8 or uint16, N x H x W [x C], or you say what it "
        f"is: set data.kind, or add an array kind: {_kinds()}."
    )


def _kinds() -> str:
    return ", ".join(get_args(Kind))


def _height_first(images: np.ndarray) -> bool:
    """Return whether images, N x H x W x C, look as if their channels came first: few rows, and many channels."""
    _, height, width, channels = images.shape
    return channels > _MOST_CHANNELS_UNSEEN and height < min(width, channels)


def _images(arrays: Mapping[str, np.ndarray], where: str, first: bool, notes: list[str]) -> _Inputs:
    parts = []
    for part in _PARTS:
        images = arrays[f"x_{part}"]
        if images.dtype.name not in _IMAGES or images.ndim not in (3, 4):
            layout = "N x C x H x W" if first else "N x H x W [x C]"
            raise InputError(
                f"{SOURCE}: x_{part} in {where} is {_form(images)}; images are {', '.join(_IMAGES)}, {layout}."
            )
        if not first and images.ndim == 4:
            _, height, width, channels = images.shape
            if height in (1, 3) and width == channels > _MOST_CHANNELS_UNSEEN:
                raise InputError(
                    f"{SOURCE}: x_{part} in {where} is {_form(images)}, which looks like N x C x H x W; images are "
                    "N x H x W [x C]: write x.transpose(0, 2, 3, 1)."
                )
        if not first and images.ndim == 4 and part == "train" and _height_first(images):
            _, height, width, channels = images.shape
            notes.append(
                f"images are {channels} channels of {height} x {width} pixels, N x H x W x C; if x is N x C x H x W, "
                "write x.transpose(0, 2, 3, 1)"
            )
        if images.dtype.kind == "f":
            images = as_float32(images)
        parts.append(images if first and images.ndim == 4 else channels_first(images))
    if len({part.dtype for part in parts}) > 1:
        raise InputError(f"{SOURCE}: x_train and x_test in {where} are {parts[0].dtype} and {parts[1].dtype}.")
    return _Inputs(parts, None)


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return images of N x H x W or N x H x W x C as N x C x H x W; in memory if the file is not mapped."""
    turned = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return turned if isinstance(images, np.memmap) else np.ascontiguousarray(turned)


def _series(arrays: Mapping[str, np.ndarray], config: SetsConfig, where: str, notes: list[str]) -> _Inputs:
    parts = as_series(_both(arrays, "x"), _both(arrays, "length"), config, where, notes)
    names = _named_columns(arrays, "channels", where, parts[0].shape[1])
    columns = tuple(Column(name=name) for name in names or ())
    return _Inputs(parts, DataSpec(kind="series", shape=parts[0].shape[1:], columns=columns))


def _table(arrays: Mapping[str, np.ndarray], where: str) -> _Inputs:
    parts = [arrays[f"x_{part}"] for part in _PARTS]
    for part, rows in zip(_PARTS, parts, strict=True):
        if rows.ndim != 2 or rows.shape[1:] != parts[0].shape[1:]:
            raise InputError(f"{SOURCE}: x_{part} in {where} is {_form(rows)}; a table is N x columns in both parts.")
    count = parts[0].shape[1]
    names = _named_columns(arrays, "columns", where, count) or [f"x{number}" for number in range(count)]
    columns = tuple(Column(name=name) for name in names)
    return _Inputs([one.astype(np.float64, copy=False) for one in parts],
                   DataSpec(kind="table", shape=(count,), columns=columns))  # fmt: skip


def _free(arrays: Mapping[str, np.ndarray]) -> _Inputs:
    parts = [arrays[f"x_{part}"] for part in _PARTS]
    parts = [one if one.dtype.name in ("float32", "float64") else as_float32(one) for one in parts]
    return _Inputs(parts, DataSpec(kind="array", shape=parts[0].shape[1:]))


def _named_columns(arrays: Mapping[str, np.ndarray], key: str, where: str, count: int) -> list[str] | None:
    if key not in arrays:
        return None
    names = _names(where, key, arrays[key])
    if len(names) != count or len(set(names)) != count:
        raise InputError(
            f"{SOURCE}: {key} in {where} has {len(set(names))} different names; x_train has {count} {key}."
        )
    return names


def _nodes(arrays: Mapping[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return who has each training and each test sample, by name; None if the set does not say so."""
    given = _both(arrays, "node")
    if all(one is None for one in given):
        return None
    named = np.array(_names(where, "node_names", arrays["node_names"])) if "node_names" in arrays else None
    found = []
    for part, holders in zip(_PARTS, given, strict=True):
        count = len(arrays[f"y_{part}"])
        if holders is None or holders.shape != (count,):
            have = "missing" if holders is None else _form(holders)
            raise InputError(
                f"{SOURCE}: node_{part} in {where} is {have}; it must have a node for each of {count} samples."
            )
        texts = np.array(_names(where, f"node_{part}", holders))
        if named is not None and holders.dtype.kind in "iu":
            if not 0 <= int(holders.min()) <= int(holders.max()) < len(named):
                raise InputError(
                    f"{SOURCE}: node_{part} in {where} has {holders.min()} to {holders.max()}; node_names has "
                    f"{len(named)} names."
                )
            texts = named[holders.astype(np.int64)]
        found.append(texts)
    return found[0], found[1]


def _names(where: str, key: str, array: np.ndarray) -> list[str]:
    """Return an array of names as texts. Raises InputError for another shape or kind, and for bytes in no UTF-8."""
    if array.ndim != 1 or array.dtype.kind not in "SUiu":
        raise InputError(f"{SOURCE}: {key} in {where} is {array.dtype}, {array.ndim}-D; it must be a list of names.")
    if array.dtype.kind == "U" and array.size:
        letters = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).view(np.uint32)
        if int(letters.max()) > sys.maxunicode:
            raise InputError(f"{SOURCE}: {key} in {where} has a name with {letters.max()}, which is no letter.")
    try:
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{SOURCE}: {key} in {where} has a name that is not UTF-8: {error}.") from error
    return [unicodedata.normalize("NFC", text) for text in texts]


def _labels(
    where: str, given: Sequence[np.ndarray], named: list[str] | None
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return the labels of both parts as positions in the classes, and the classes."""
    if named is not None and (twice := sorted({name for name in named if named.count(name) > 1})):
        raise InputError(f"{SOURCE}: classes in {where} has {twice[0]!r} twice; each class needs a name of its own.")
    kinds = {"text" if labels.dtype.kind in "SU" else "number" for labels in given}
    if len(kinds) > 1:
        raise InputError(f"{SOURCE}: y_train and y_test in {where} must both have numbers, or both names.")
    if kinds == {"text"}:
        texts = [_names(where, f"y_{part}", labels) for part, labels in zip(_PARTS, given, strict=True)]
        classes = named if named is not None else sorted({name for part in texts for name in part})
        place = {name: number for number, name in enumerate(classes)}
        for names in texts:
            if unnamed := sorted(set(names) - place.keys()):
                raise InputError(f"{SOURCE}: {where} has the label {unnamed[0]!r}, which `classes` lacks.")
        return [np.array([place[name] for name in names], np.int64) for names in texts], tuple(classes)
    for part, labels in zip(_PARTS, given, strict=True):
        if int(labels.min()) < 0:
            raise InputError(f"{SOURCE}: y_{part} in {where} has the label {labels.min()}; labels count from 0.")
    largest = max(int(labels.max()) for labels in given)
    if named is not None and len(named) <= largest:
        raise InputError(f"{SOURCE}: {where} names {len(named)} classes, but has the label {largest}.")
    if named is None and largest >= max(_MOST_UNNAMED, sum(map(len, given))):
        raise InputError(
            f"{SOURCE}: {where} has the label {largest}, and only {sum(map(len, given))} images; number the labels "
            "from 0, or name all classes in an array `classes`."
        )
    numbered = named if named is not None else [str(number) for number in range(largest + 1)]
    return [labels.astype(np.int64) for labels in given], tuple(numbered)

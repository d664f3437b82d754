"""Samples that a user gives to a model, as raw ones of its description: files, arrays, rows, texts.

What is not as the description says is converted where that has one meaning, with a note, and else refused by name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image
from torch import Tensor

from ..config import SetsConfig
from ..data.alignment import in_kinds_of, in_spec
from ..data.npz import read_arrays
from ..data.pictures import ENDINGS, read_picture
from ..data.samples import LARGEST, MOST, Dataset, Samples, fitted_pixels
from ..data.series import as_series, padded_series
from ..data.spec import DataSpec
from ..data.table_columns import table_of
from ..data.table_files import PARQUET_ENDINGS, TEXT_ENDINGS, read_frame
from ..data.tokens import texts_as_tokens
from ..errors import InputError, on_one_line, reason_of, some
from ..files import read

_MOST_TEXT = 2**24  # bytes of a text file
_WHERE = "the samples"
_NAMES = ("x", "x_test", "x_train")  # arrays in an archive, the first that is there


class NewSamples(NamedTuple):
    """Raw samples as a description says, N x ...; a name for each: its file, with its row; what was done to them."""

    inputs: np.ndarray
    names: list[str]
    notes: tuple[str, ...]


def new_samples(given: Any, spec: DataSpec, data: SetsConfig) -> NewSamples:
    """Return what a user gives as raw samples of a description; `data`: how the samples of training were read.

    Raises InputError, which names the file, array or column, for what cannot be such samples.
    """
    if spec.kind == "tokens" and isinstance(given, str):
        given = [given]
    if isinstance(given, str | Path):
        given = [given]
    if spec.kind == "tokens" and isinstance(given, list | tuple) and all(isinstance(one, str) for one in given):
        return _texts(list(given), [f"text {i}" for i in range(len(given))], spec, data, _names_of_files(given))
    if isinstance(given, list | tuple) and given and all(isinstance(one, str | Path) for one in given):
        return of_files([Path(one).expanduser() for one in given], spec, data)
    if hasattr(given, "columns") and hasattr(given, "iloc"):
        return _rows(given, spec, data, "the data frame")
    if isinstance(given, Image.Image):
        given = [given]
    if isinstance(given, list | tuple) and given and all(isinstance(one, Image.Image) for one in given):
        return _pictures([(f"image {i}", np.asarray(one.convert("RGB"))) for i, one in enumerate(given)], spec)
    return _arrays(given, spec, data, "array")


def files_in(paths: Sequence[Path], spec: DataSpec) -> list[Path]:
    """Return the files for a description among files and folders, in order. Raises InputError if there are none."""
    valid = {
        "image": (*sorted(ENDINGS), ".npy", ".npz"), "table": (*TEXT_ENDINGS, *PARQUET_ENDINGS),
        "tokens": (".txt", *TEXT_ENDINGS, *PARQUET_ENDINGS, ".npy", ".npz"),
    }.get(spec.kind, (".npy", ".npz"))  # fmt: skip
    found: list[Path] = []
    for path in paths:
        said = on_one_line(str(path), 200)
        if not path.exists():
            raise InputError(f"{said}: there is no such file or folder.")
        if path.is_dir():
            inside = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in valid and not _hidden(one, path)]
            if not inside:
                raise InputError(f"{said}: the folder has no file for {spec.noun(2)}: {', '.join(valid)}.")
            found += inside
        elif path.suffix.lower() not in valid:
            raise InputError(f"{said}: a file for {spec.noun(2)} ends with {', '.join(valid)}.")
        else:
            found.append(path)
    return found


def _hidden(path: Path, home: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(home).parts)


def of_files(paths: Sequence[Path], spec: DataSpec, data: SetsConfig) -> NewSamples:
    """Return the samples in files and folders. Raises InputError, which names the file, for one that cannot be read."""
    parts = list(parts_of_files(paths, spec, data))
    notes = Counter(note for part in parts for note in part.notes)
    return NewSamples(
        np.concatenate([part.inputs for part in parts]), [name for part in parts for name in part.names], tuple(notes)
    )


def parts_of_files(
    paths: Sequence[Path], spec: DataSpec, data: SetsConfig, together: int = 256
) -> Iterator[NewSamples]:
    """Yield the samples in files and folders, at most `together` image files at a time, in order."""
    waiting: list[Path] = []
    for path in files_in(paths, spec):
        ending = path.suffix.lower()
        if ending in ENDINGS:
            waiting.append(path)
            if len(waiting) == together:
                yield _picture_files(waiting, spec)
                waiting = []
            continue
        if ending in (".npy", ".npz"):
            yield _arrays(_read_array(path), spec, data, str(path))
        elif ending == ".txt":
            yield _texts(_read_lines(path), [f"{path}:{i}" for i in range(1, 1 + len(_read_lines(path)))], spec, data)
        else:
            frame = read_frame(path, texts=spec.kind == "tokens")
            yield (_text_column if spec.kind == "tokens" else _rows)(frame, spec, data, str(path))
    if waiting:
        yield _picture_files(waiting, spec)


def _picture_files(paths: Sequence[Path], spec: DataSpec) -> NewSamples:
    found = []
    for path in paths:
        try:
            found.append((str(path), read_picture(path, None)))
        except ValueError as error:
            raise InputError(f"{on_one_line(str(path), 200)}: {error}") from error
    return _pictures(found, spec)


def _pictures(found: Sequence[tuple[str, np.ndarray]], spec: DataSpec) -> NewSamples:
    """Return pictures, uint8, H x W x 3 each, as images of a description."""
    channels, height, width = spec.shape
    if spec.largest != LARGEST["uint8"] or channels not in (1, 3):
        values = "floats" if spec.largest is None else f"values from 0 to {spec.largest:g}"
        raise InputError(
            f"image files have 8 bits and at most three channels, but the model takes images of {channels} channels, "
            f"{values}; give arrays, N x {channels} x {height} x {width}, in a .npy file."
        )
    images = np.empty((len(found), height, width, 3), np.uint8)
    resized = coloured = 0
    for place, (_, pixels) in enumerate(found):
        if pixels.shape[:2] != (height, width):
            resized += 1
            pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        images[place] = pixels
        coloured += channels == 1 and bool((pixels != pixels[..., :1]).any())
    notes = [f"images of another size are resized to {height} x {width}"] if resized else []
    notes += ["colour images become grey, as the model takes them"] if coloured else []
    raw = fitted_pixels(images.transpose(0, 3, 1, 2), None, channels)
    return NewSamples(np.ascontiguousarray(raw), [name for name, _ in found], tuple(notes))


def _arrays(given: Any, spec: DataSpec, data: SetsConfig, where: str) -> NewSamples:
    """Return arrays as samples of a description."""
    if isinstance(given, list | tuple) and spec.kind == "series" and given:
        given = padded_series([np.asarray(one, np.float64) for one in given])[0]
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InputError(f"{where}: it is no array: {on_one_line(str(error), 100)}.") from error
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise InputError(
            f"{where}: it is {array.dtype}, {array.ndim}-D; {spec.noun(2)} are numbers, N x {_shape(spec)}, or paths."
        )
    if spec.kind == "table":
        raise InputError(f"{where}: rows need their columns' names; give a data frame, or a CSV or Parquet file.")
    notes: list[str] = []
    if spec.kind == "image":
        array = _images(array, spec, where, notes)
    elif spec.kind == "series":
        config = data.model_copy(update={"length": spec.shape[1]})
        steps = np.flatnonzero(~np.isnan(array.reshape(-1, array.shape[-1])).all(0)) if array.size else array[:0]
        if data.longer != "cut" and len(steps) and steps[-1] >= spec.shape[1]:
            raise InputError(
                f"{where}: it has series of {steps[-1] + 1} steps; the model takes at most {spec.shape[1]}: cut them."
            )
        array = as_series([array, array[:1]], [None, None], config, where, notes)[0]
        if array.shape[1] != spec.shape[0]:
            raise InputError(f"{where}: its series have {array.shape[1]} channels, the model takes {spec.shape[0]}.")
    elif spec.kind == "tokens":
        array = _ids(array, spec, where, notes)
    else:
        if array.shape[1:] != spec.shape:
            raise InputError(f"{where}: its samples are {array.shape[1:]}, the model takes {_shape(spec)}.")
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and spec.kind != "series":
        odd = ~(np.abs(array) <= MOST)
        if odd.any():
            raise InputError(f"{where}: {int(odd.sum())} values are not finite or beyond {MOST:g}.")
    return NewSamples(array, [f"{where}:{i}" for i in range(len(array))], tuple(notes))


def _images(array: np.ndarray, spec: DataSpec, where: str, notes: list[str]) -> np.ndarray:
    channels, height, width = spec.shape
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1:] != spec.shape:
        known = (1, 3, channels)
        last = array.shape[3] in known and array.shape[1] not in known
        if last or array.shape[1:] == (height, width, channels):
            array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4:
        raise InputError(f"{where}: images are N x H x W, N x H x W x C or N x C x H x W; it is {array.shape}.")
    if array.shape[1] != channels and not {int(array.shape[1]), channels} <= {1, 3}:
        raise InputError(f"{where}: its images have {array.shape[1]} channels, the model takes {channels}.")
    raw = _raw_values(array, spec, where, notes)
    if array.shape[1] != channels:
        notes.append("colour images become grey" if channels == 1 else "grey images become three equal channels")
    sides = None if array.shape[2:] == (height, width) else (height, width)
    if sides:
        notes.append(f"images of {array.shape[2]} x {array.shape[3]} are resized to {height} x {width}")
    return fitted_pixels(np.ascontiguousarray(raw), sides, channels)


def _raw_values(array: np.ndarray, spec: DataSpec, where: str, notes: list[str]) -> np.ndarray:
    """Return images in the range of the run's: whole numbers up to `spec.largest`, or floats as they are."""
    if spec.largest is None:
        return array.astype(np.float32)
    wanted = {largest: np.dtype(name) for name, largest in LARGEST.items()}[spec.largest]
    if array.dtype == wanted:
        return array
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        notes.append(f"values from 0 to 1 are taken as shares of {spec.largest:g}")
        return np.round(array * spec.largest).astype(wanted)
    if not (low >= 0 and high <= spec.largest):
        raise InputError(
            f"{where}: its values are {low:g} to {high:g}; the model takes raw values, 0 to {spec.largest:g}, or "
            "shares of it, 0 to 1."
        )
    return np.round(array).astype(wanted)


def _ids(array: np.ndarray, spec: DataSpec, where: str, notes: list[str]) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InputError(f"{where}: ids of tokens are whole numbers, N x L; it is {array.dtype}, {array.shape}.")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < len(spec.words):
        raise InputError(
            f"{where}: its ids are {array.min()} to {array.max()}; the model knows 0 to {len(spec.words) - 1}."
        )
    length = spec.shape[0]
    if (array[:, length:] != 0).any():
        notes.append(f"texts of more than {length} tokens are cut at the end")
    cut = array[:, :length].astype(np.int64)
    return np.pad(cut, ((0, 0), (0, length - cut.shape[1])))


def _names_of_files(texts: Sequence[str]) -> tuple[str, ...]:
    """Return a note for texts that are names of files, of which somebody may have meant the content."""
    for text in texts:
        if os.path.isfile(text):  # no text is opened: it may come from anybody
            return (f"{on_one_line(repr(text), 100)} is taken as a text; for the texts in this file give a Path",)
    return ()


def _texts(
    texts: list[Any], names: list[str], spec: DataSpec, data: SetsConfig, noted: tuple[str, ...] = ()
) -> NewSamples:
    if not spec.learned and (len(spec.words) < 5 or spec.words[4] != "<byte 0>"):
        raise InputError("the model takes ids of tokens, not texts: give whole numbers, N x L.")
    if not texts:
        raise InputError("there is no text.")
    notes = [*noted]
    config = data.model_copy(
        update={"length": spec.shape[0], "longer": "cut", "tokenizer": "words" if spec.learned else "bytes"}
    )
    tokens, own = texts_as_tokens(texts, config, notes)
    none = np.zeros(len(tokens), np.int64)
    both = Dataset(Samples(tokens, none), Samples(tokens[:0], none[:0]), ("",), spec=own)
    return NewSamples(in_spec(both, spec).train.inputs, names, tuple(notes))


def _text_column(frame: Any, spec: DataSpec, data: SetsConfig, where: str) -> NewSamples:
    columns = [str(name) for name in frame.columns]
    name = data.text if data.text in columns else columns[0] if len(columns) == 1 else None
    if name is None:
        wanted = repr(data.text) if data.text else "of the texts"
        raise InputError(f"{where}: it has no column {wanted}; it has {some(columns)}.")
    return _texts(frame[name].tolist(), [f"{where}:{i}" for i in range(len(frame))], spec, data)


def _rows(frame: Any, spec: DataSpec, data: SetsConfig, where: str) -> NewSamples:
    """Return rows of a data frame as those of a description: columns by name, categories by name."""
    if spec.kind != "table":
        raise InputError(f"{where}: it has rows, the model takes {spec.noun(2)}.")
    columns = [column.name for column in spec.columns]
    frame = frame.rename(columns=str)
    if missing := [name for name in columns if name not in frame.columns]:
        raise InputError(f"{where}: it lacks the columns {some(missing)}; it has {some(list(frame.columns))}.")
    if not len(frame):
        raise InputError(f"{where}: it has no rows.")
    kinds = {one.name: "numeric" if one.categories is None else "categorical" for one in spec.columns}
    config = SetsConfig(columns=cast(Any, kinds), max_categories=10**9, task="regression")
    none = np.zeros((len(frame), 1))
    values, own = table_of(frame[columns].reset_index(drop=True), none, none[:, 0] > 0, config, where, [])
    notes = []
    for mine, theirs in zip(own.columns, spec.columns, strict=True):
        unknown = sorted(set(mine.categories or ()) - set(theirs.categories or ()))
        if unknown and theirs.categories is not None:
            notes.append(f"column {theirs.name!r}: unknown categories are taken as missing: {some(unknown, 5)}")
    both = Dataset(Samples(values, none), Samples(values[:0], none[:0]), ("",), spec=own)
    rows = in_spec(in_kinds_of(both, spec), spec).train.inputs
    if data.missing == "refuse" and np.isnan(rows[:, spec.numeric()]).any():
        notes.append(
            "numbers are missing, which the run's data.missing = 'refuse' did not allow; each becomes the mean"
        )
    return NewSamples(rows, [f"{where}:{i}" for i in range(len(frame))], tuple(notes))


def _shape(spec: DataSpec) -> str:
    return " x ".join(map(str, spec.shape))


def _read_array(path: Path) -> np.ndarray:
    said = on_one_line(str(path), 200)
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        found = read_arrays(path, _NAMES)
    except Exception as error:  # NumPy and zip raise many types for damaged files
        reason = on_one_line(reason_of(error) or type(error).__name__, 200).rstrip(".")
        raise InputError(f"{said}: it is no NumPy file of plain arrays, or is damaged: {reason}.") from error
    name = next((name for name in _NAMES if name in found), None)
    if name is None:
        raise InputError(f"{said}: it has no array {', '.join(_NAMES)}.")
    return found[name]


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, each a text."""
    try:
        return read(path, _MOST_TEXT).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{on_one_line(str(path), 200)}: it cannot be read as UTF-8: {reason_of(error)}.") from error

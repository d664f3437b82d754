"""Sets in NumPy files."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from ..errors import InputError, MissingFiles, on_one_line
from .images import KEY, Dataset, Images

_NEEDED = ("x_train", "y_train", "x_test", "y_test")
_MOST_UNNAMED = 1000  # a larger label needs as many images, or names in `classes`


def from_npz(path: Path) -> Dataset:
    """Return the set in a NumPy file: `x_train`, `x_test` (uint8, N x H x W [x C]), `y_train`, `y_test`.

    Labels are 0..classes-1, or the names of classes. An optional array `classes` has the names in the order of the
    labels. Raises InputError for a missing, damaged or wrong file.
    """
    if not path.is_file():
        raise MissingFiles(f"{KEY}: there is no file {path}.")
    arrays = _arrays(path)
    if missing := [key for key in _NEEDED if key not in arrays]:
        raise InputError(f"{KEY}: {path} lacks {', '.join(missing)}; it needs {', '.join(_NEEDED)}.")
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3))
        ):
            shape = " x ".join(map(str, images.shape))
            raise InputError(
                f"{KEY}: x_{part} in {path} is {images.dtype}, {shape}; it must be uint8, N x H x W [x 1 or 3]."
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iuSU" or len(labels) != len(images) or len(labels) == 0:
            raise InputError(
                f"{KEY}: y_{part} in {path} must have one whole number or name for each image of x_{part}."
            )
    named = _names(path, "classes", arrays["classes"]) if "classes" in arrays else None
    parts, classes = _labels(path, [arrays["y_train"], arrays["y_test"]], named)
    train, test = (
        Images(channels_first(arrays[f"x_{part}"]), own) for part, own in zip(("train", "test"), parts, strict=True)
    )
    return Dataset(train, test, classes)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("it is one array (.npy)")
        with archive:
            return {key: archive[key] for key in (*_NEEDED, "classes") if key in archive.files}
    except Exception as error:  # zip, zlib and NumPy raise many types for damaged files
        reason = on_one_line(str(error) or type(error).__name__, 200)
        raise InputError(f"{KEY}: {path} is not a NumPy archive of plain arrays, or is damaged: {reason}.") from error


def _names(path: Path, key: str, array: np.ndarray) -> list[str]:
    """Return an array of names as texts. Raises InputError for another shape or kind, and for bytes in no UTF-8."""
    if array.ndim != 1 or array.dtype.kind not in "SUiu":
        raise InputError(f"{KEY}: {key} in {path} is {array.dtype}, {array.ndim}-D; it must be a list of names.")
    try:
        texts = [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]
    except UnicodeDecodeError as error:
        raise InputError(f"{KEY}: {key} in {path} has a name that is not UTF-8: {error}.") from error
    return [unicodedata.normalize("NFC", text) for text in texts]


def _labels(path: Path, given: list[np.ndarray], named: list[str] | None) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return the labels of both parts as positions in the classes, and the classes."""
    if named is not None and (twice := sorted({name for name in named if named.count(name) > 1})):
        raise InputError(f"{KEY}: classes in {path} has {twice[0]!r} twice; each class needs a name of its own.")
    kinds = {"text" if labels.dtype.kind in "SU" else "number" for labels in given}
    if len(kinds) > 1:
        raise InputError(f"{KEY}: y_train and y_test in {path} must both have numbers, or both names.")
    if kinds == {"text"}:
        texts = [_names(path, f"y_{part}", labels) for part, labels in zip(("train", "test"), given, strict=True)]
        classes = named if named is not None else sorted({name for part in texts for name in part})
        place = {name: number for number, name in enumerate(classes)}
        for names in texts:
            if unnamed := sorted(set(names) - place.keys()):
                raise InputError(f"{KEY}: {path} has the label {unnamed[0]!r}, which `classes` lacks.")
        return [np.array([place[name] for name in names], np.int64) for names in texts], tuple(classes)
    for part, labels in zip(("train", "test"), given, strict=True):
        if int(labels.min()) < 0:
            raise InputError(f"{KEY}: y_{part} in {path} has the label {labels.min()}; labels count from 0.")
    largest = max(int(labels.max()) for labels in given)
    if named is not None and len(named) <= largest:
        raise InputError(f"{KEY}: {path} names {len(named)} classes, but has the label {largest}.")
    if named is None and largest >= max(_MOST_UNNAMED, sum(map(len, given))):
        raise InputError(
            f"{KEY}: {path} has the label {largest}, and only {sum(map(len, given))} images; number the labels from 0, "
            "or name all classes in an array `classes`."
        )
    numbered = named if named is not None else [str(number) for number in range(largest + 1)]
    return [labels.astype(np.int64) for labels in given], tuple(numbered)


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return images of N x H x W or N x H x W x C as N x C x H x W."""
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))

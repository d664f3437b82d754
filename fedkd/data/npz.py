"""Sets in NumPy files."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import InputError, MissingFiles, on_one_line, reason_of
from ..files import refuse_odd
from .images import KEY, Dataset, Images

_NEEDED = ("x_train", "y_train", "x_test", "y_test")
_MOST_PACKED, _MOST_RATIO = 2**28, 100  # bytes that an archive may become whatever its size; and how often its size
_MOST_UNNAMED = 1000  # a larger label needs as many images, or names in `classes`


def from_npz(path: Path) -> Dataset:
    """Return the set in a NumPy file: `x_train`, `x_test` (uint8, N x H x W [x C]), `y_train`, `y_test`.

    Labels are 0..classes-1, or the names of classes. An optional array `classes` has the names in the order of the
    labels. Raises InputError for a missing, damaged or wrong file.
    """
    if not path.exists():
        raise MissingFiles(f"{KEY}: there is no file {path}.")
    try:
        arrays = read_arrays(path, (*_NEEDED, "classes"))
    except ValueError as error:
        reason = str(error)
        raise InputError(f"{KEY}: {path} is not a NumPy archive of plain arrays, or is damaged: {reason}.") from error
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


def read_arrays(path: Path, names: Collection[str], home: Path | None = None) -> dict[str, np.ndarray]:
    """Return those of the named arrays that a NumPy archive has; `home` as in `files.refuse_odd`.

    What an array claims to need is compared with what the archive has, and with the memory, before memory is taken.
    Raises ValueError with the reason for what cannot be read.
    """
    try:
        refuse_odd(path, home)
        with path.open("rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is one array (.npy)")
        with zipfile.ZipFile(path) as archive:
            found = {name: info for info in archive.infolist() if (name := info.filename.removesuffix(".npy")) in names}
            _refuse_bomb(path.stat().st_size, sum(info.file_size for info in found.values()))
            arrays = {}
            for name, info in found.items():
                with archive.open(info) as member:
                    _refuse_claim(name, info.file_size, member)
                with archive.open(info) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
            return arrays
    except Exception as error:  # zip, zlib and NumPy raise many types for damaged files
        raise ValueError(on_one_line(reason_of(error) or type(error).__name__, 200)) from error


def _refuse_bomb(stored: int, whole: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if whole > memory:
        raise ValueError(f"its arrays have {whole / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory")
    if whole > _MOST_PACKED and whole > _MOST_RATIO * stored:
        raise ValueError(
            f"{stored / 1e6:.1f} MB would become {whole / 1e9:.1f} GB, more than images do; if that is meant, write it "
            "with np.savez, which does not compress"
        )


def _refuse_claim(name: str, size: int, member: IO[bytes]) -> None:
    """Raise ValueError if an array's header does not fit the bytes that follow it."""
    version = np.lib.format.read_magic(member)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"{name} has a header of version {version[0]}.{version[1]}")
    shape, _, dtype = reader(member)
    if dtype.hasobject:
        raise ValueError(f"{name} has Python objects, which are not loaded")
    if dtype.itemsize == 0:
        raise ValueError(f"{name} has values of no bytes, of which a file can claim any number")
    if math.prod(shape) * dtype.itemsize != size - member.tell() or min(shape, default=0) < 0:
        raise ValueError(f"{name} claims to be {dtype}, {' x '.join(map(str, shape))}, which its size does not fit")


def _names(path: Path, key: str, array: np.ndarray) -> list[str]:
    """Return an array of names as texts. Raises InputError for another shape or kind, and for bytes in no UTF-8."""
    if array.ndim != 1 or array.dtype.kind not in "SUiu":
        raise InputError(f"{KEY}: {key} in {path} is {array.dtype}, {array.ndim}-D; it must be a list of names.")
    if array.dtype.kind == "U" and array.size:
        letters = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).view(np.uint32)
        if int(letters.max()) > sys.maxunicode:
            raise InputError(f"{KEY}: {key} in {path} has a name with {letters.max()}, which is no letter.")
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

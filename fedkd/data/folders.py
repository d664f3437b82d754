"""Sets in folders of images, one folder for each class."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError, MissingFiles, some
from .arrays import channels_first
from .pictures import ENDINGS, read_picture
from .samples import KEY, Dataset, Samples

_TRAIN, _TEST, _VALIDATION = {"train", "training"}, {"test", "testing"}, {"val", "valid", "validation"}
_PARTS = _TRAIN | _TEST | _VALIDATION
_OF_A_SYSTEM = {"__macosx", "@eadir", "__pycache__", "$recycle.bin", "system volume information", "lost+found"}
_LAYOUT = "one folder for each class, or `train` and `test` with one folder for each class in both"
_log = logging.getLogger("fedkd")


class _Parts(NamedTuple):
    """The folders whose subfolders are classes. `test`: None if the training images are split."""

    train: Path
    test: Path | None


def from_folders(folder: Path, size: int | None) -> Dataset:
    """Return the set in folders of images: `<folder>/train/<class>/**` and `<folder>/test/<class>/**`.

    `val` is the test part where there is no `test`. Without these folders, `<folder>/<class>/**` is split: every fifth
    image of a class, by file name, is for the test. Hidden files and folders are skipped. Classes are those of both
    parts, in the order of their names; a warning names each class that only one part has, and each folder and each
    kind of file that is not read. Images of different sizes need `size`. Raises InputError for missing, empty or
    unreadable folders and images.
    """
    if not folder.is_dir():
        raise MissingFiles(f"{KEY}: there is no folder {folder}.")
    home, home_of_tests = _parts_of(folder)
    skipped: Counter[str] = Counter()
    files = _files_of_classes(home, skipped)
    test_files = {} if home_of_tests is None else _files_of_classes(home_of_tests, skipped)
    classes = sorted(files.keys() | test_files.keys())
    if not any(files.values()):
        raise InputError(f"{KEY}: {home} has no images in class folders; expected: {_LAYOUT}. {_found_in(home)}")
    if empty := [name for name in classes if not files.get(name) and not test_files.get(name)]:
        raise InputError(
            f"{KEY}: {home / empty[0]} has no images; remove the folder, or put images into it.{_unread(skipped)}"
        )
    if home_of_tests is None:
        test_files = {name: paths[4::5] for name, paths in files.items()}
        files = {name: [path for i, path in enumerate(paths) if i % 5 != 4] for name, paths in files.items()}
    else:
        _warn_of_classes(home, home_of_tests, files, test_files)
    if not any(test_files.values()):
        raise InputError(f"{KEY}: {folder} leaves no test images; add `train` and `test` folders, or more images.")
    if skipped:
        _log.warning("%s:%s", folder, _unread(skipped))
    labelled = [
        [(path, i) for i, name in enumerate(classes) for path in part.get(name, [])] for part in (files, test_files)
    ]
    train, test = _read_all(labelled, size)
    return Dataset(train, test, tuple(classes))


def _unread(skipped: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in skipped.most_common(5))
    return f" Files that are not read, by their endings: {kinds}." if skipped else ""


def _parts_of(folder: Path) -> _Parts:
    """Return the folders of the training and the test images. Raises InputError for a layout with two meanings."""
    below = _folders(folder)
    named = {kind: [path for path in below if path.name.lower() in names]
             for kind, names in (("train", _TRAIN), ("test", _TEST), ("val", _VALIDATION))}  # fmt: skip
    others = [path for path in below if path.name.lower() not in _PARTS]
    if twice := next((paths for paths in named.values() if len(paths) > 1), None):
        raise InputError(f"{KEY}: {folder} has both {twice[0].name} and {twice[1].name}; keep one of them.")
    train, test, validation = (paths[0] if paths else None for paths in named.values())
    if train is None and not others and (test or validation):
        raise InputError(f"{KEY}: {folder} has no `train` folder; expected: {_LAYOUT}. {_found_in(folder)}")
    if train is not None and (test or validation):
        unread = [*others, *([validation] if test and validation else [])]
        if unread:
            _log.warning("%s: not read, next to train and test: %s.", folder, some([path.name for path in unread]))
        return _Parts(train, test or validation)
    home = train if train is not None and not others else folder
    for path in _folders(home):
        if _words(path.name) & _PARTS and _folders(path):  # a class of trains has images, and no folders
            raise InputError(
                f"{KEY}: {home} has a folder {path.name!r} with folders in it, which is no class; expected: {_LAYOUT}. "
                f"{_found_in(home)}"
            )
        if inner := [one for one in _folders(path) if one.name.lower() in _PARTS]:
            hint = f" Perhaps you mean the folder {path}." if len(_folders(home)) == 1 else ""
            raise InputError(
                f"{KEY}: {home} has a folder {path.name}/{inner[0].name}; expected: {_LAYOUT}: "
                f"{inner[0].name}/{path.name}.{hint}"
            )
    return _Parts(home, None)


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_A_SYSTEM


def _found_in(folder: Path) -> str:
    folders, files = _folders(folder), [p.name for p in sorted(folder.iterdir()) if p.is_file()]
    found = [f"the folders {some([p.name for p in folders])}"] if folders else []
    found += [f"{len(files)} files ({some(files, 3)})"] if files else []
    return f"Found: {' and '.join(found) or 'nothing'}."


def _files_of_classes(home: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """Return the image files of each class folder, at any depth. `skipped` counts other files by their ending."""
    found: dict[str, list[Path]] = {}
    owner: dict[str, Path] = {}
    for path in _folders(home):
        name = unicodedata.normalize("NFC", path.name)  # macOS writes accents as separate characters
        found.setdefault(name, []).extend(_image_files(path, skipped, owner))
    skipped.update(p.suffix.lower() for p in home.iterdir() if p.is_file() and not _is_hidden(p.name))
    return found


def _image_files(folder: Path, skipped: Counter[str], owner: dict[str, Path]) -> list[Path]:
    """Return the image files in a class folder. `owner`: the class folder of each folder that was read before.

    Raises InputError for a folder that cannot be read, and for one that links make part of two classes.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{KEY}: the folder {error.filename} cannot be read: {error.strerror}.") from error

    files: list[Path] = []
    for place, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if owner.get(real) == folder:  # a link to a folder above would lead round for ever
            below[:] = []
            continue
        if real in owner:
            raise InputError(f"{KEY}: the folder {real} is read as {owner[real]} and, through a link, as {place}.")
        owner[real] = folder
        below[:] = [name for name in below if not _is_hidden(name)]
        for name in names:
            if _is_hidden(name):
                continue
            if Path(name).suffix.lower() in ENDINGS:
                files.append(Path(place, name))
            else:
                skipped[Path(name).suffix.lower()] += 1
    return sorted(files)


def _warn_of_classes(
    home: Path, home_of_tests: Path, files: dict[str, list[Path]], test_files: dict[str, list[Path]]
) -> None:
    for folder, other, having, lacking in (
        (home, home_of_tests, files, test_files),
        (home_of_tests, home, test_files, files),
    ):
        if alone := [name for name, paths in sorted(having.items()) if paths and not lacking.get(name)]:
            names = some([f"{folder.name}/{name}" for name in alone])
            _log.warning("%s: %s has no images of the classes in %s.", folder.parent, other.name, names)


def _read_all(parts: Iterable[list[tuple[Path, int]]], size: int | None) -> list[Samples]:
    """Read labelled files. Raises InputError, which names the first files that cannot be read and counts the others."""
    bad: list[str] = []
    first: tuple[Path, np.ndarray] | None = None
    read: list[Samples] = []
    for files in parts:
        pixels = []
        for path, _ in files:
            try:
                pixels.append(read_picture(path, size))
            except ValueError as error:
                bad.append(f"{path}: {error}")
                continue
            first = first or (path, pixels[-1])
            if not bad and pixels[-1].shape != first[1].shape:
                (height, width, _), (other_height, other_width, _) = pixels[-1].shape, first[1].shape
                raise InputError(
                    f"{KEY}: {path} is {width} x {height} pixels, {first[0]} is {other_width} x {other_height}; set "
                    "data.size to give them the same size."
                )
        if not bad:
            read.append(Samples(channels_first(np.stack(pixels)), np.array([label for _, label in files], np.int64)))
    if bad:
        more = f" Another {len(bad) - 1} images cannot be read either." if len(bad) > 1 else ""
        raise InputError(f"{KEY}: an image that cannot be read: {bad[0]}.{more}")
    return read

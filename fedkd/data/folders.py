"""Sets in folders of images, one folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError, MissingFiles
from .images import KEY, Dataset, Images
from .npz import channels_first


def from_folders(folder: Path, size: int | None) -> Dataset:
    """Return the set in folders of images: `<folder>/train/<class>/*` and `<folder>/test/<class>/*`.

    Without `train` and `test`, `<folder>/<class>/*` is split: every fifth image of a class, by file name, is for the
    test. Images of different sizes need `size`. Raises InputError for missing, empty or unreadable folders.
    """
    if not folder.is_dir():
        raise MissingFiles(f"{KEY}: there is no folder {folder}.")
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    home = folder / "train" if split else folder
    classes = tuple(sorted(p.name for p in home.iterdir() if p.is_dir()))
    if len(classes) < 2:
        raise InputError(
            f"{KEY}: {home} has {len(classes)} class folders; it needs one folder for each class, at least two."
        )
    train, test = [], []
    for label, name in enumerate(classes):
        files = _image_files(home / name)
        if split:
            train += [(file, label) for file in files]
            test += [(file, label) for file in _image_files(folder / "test" / name)]
        else:
            train += [(file, label) for i, file in enumerate(files) if i % 5 != 4]
            test += [(file, label) for i, file in enumerate(files) if i % 5 == 4]
    if not test:
        raise InputError(f"{KEY}: {folder} leaves no test images; add `train` and `test` folders, or more images.")
    return Dataset(_read(train, size), _read(test, size), classes)


def _image_files(folder: Path) -> list[Path]:
    endings = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in endings) if folder.is_dir() else []
    if not files:
        raise InputError(f"{KEY}: {folder} has no images ({', '.join(sorted(endings))}).")
    return files


def _read(files: list[tuple[Path, int]], size: int | None) -> Images:
    from PIL import Image, UnidentifiedImageError

    pixels = []
    for path, _ in files:
        try:
            with Image.open(path) as picture:
                image = picture.convert("RGB")
                pixels.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR) if size else image))
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{KEY}: {path} is not an image that can be read: {error}") from error
        if pixels[-1].shape != pixels[0].shape:
            raise InputError(
                f"{KEY}: {path} is {pixels[-1].shape[1]} x {pixels[-1].shape[0]} pixels, {files[0][0].name} is "
                f"{pixels[0].shape[1]} x {pixels[0].shape[0]}; set data.size to give them the same size."
            )
    return Images(channels_first(np.stack(pixels)), np.array([label for _, label in files], np.int64))

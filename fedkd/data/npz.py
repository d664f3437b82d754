"""Sets in NumPy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError, MissingFiles
from .images import KEY, Dataset, Images


def from_npz(path: Path) -> Dataset:
    """Return the set in a NumPy file: `x_train`, `x_test` (uint8, N x H x W [x C]), `y_train`, `y_test` (0..classes-1).

    An optional array `classes` has the class names. Raises InputError for a missing or wrong file.
    """
    if not path.is_file():
        raise MissingFiles(f"{KEY}: there is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (ValueError, OSError) as error:
        raise InputError(f"{KEY}: {path} is not a NumPy archive of plain arrays: {error}") from error
    needed = ("x_train", "y_train", "x_test", "y_test")
    if missing := [key for key in needed if key not in arrays]:
        raise InputError(f"{KEY}: {path} lacks {', '.join(missing)}; it needs {', '.join(needed)}.")
    parts = {}
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
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(images) or len(labels) == 0:
            raise InputError(f"{KEY}: y_{part} in {path} must have one whole number for each image of x_{part}.")
        if int(labels.min()) < 0:
            raise InputError(f"{KEY}: y_{part} in {path} has the label {labels.min()}; labels count from 0.")
        parts[part] = Images(channels_first(images), labels.astype(np.int64))
    count = 1 + max(int(part.labels.max()) for part in parts.values())
    named = tuple(map(str, arrays["classes"])) if "classes" in arrays else tuple(map(str, range(count)))
    if len(named) < count:
        raise InputError(f"{KEY}: {path} names {len(named)} classes, but has the label {count - 1}.")
    return Dataset(parts["train"], parts["test"], named)


def channels_first(images: np.ndarray) -> np.ndarray:
    """Return images of N x H x W or N x H x W x C as N x C x H x W."""
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))

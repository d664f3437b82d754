"""Labelled images, and named sets of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InputError, on_one_line

KEY = "data.name"
_LONGEST_NAME = 200  # letters of a class
PIXEL_MAX = 255  # the largest pixel value of a uint8 image


class Rows(NamedTuple):
    """Where images come from: their positions in the images of a whole set."""

    whole: np.ndarray
    positions: np.ndarray


class Images(NamedTuple):
    """Labelled images: `images` uint8, N x C x H x W; `labels` int64, N.

    `normalised`: for virtual images: `images` are float32 and already normalised. `rows`: where they come from, if it
    is known: a GPU may have them already.
    """

    images: np.ndarray
    labels: np.ndarray
    normalised: bool = False
    rows: Rows | None = None

    def take(self, index: np.ndarray) -> Images:
        """Return the images at these positions."""
        rows = None if self.rows is None else Rows(self.rows.whole, self.rows.positions[index])
        return Images(self.images[index], self.labels[index], self.normalised, rows)


@dataclass(frozen=True)
class Dataset:
    """A named set: training and test images, class names, and mean and deviation of the pixels (0..1) per channel."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.5,)


def checked(dataset: object, name: str) -> Dataset:
    """Return a set of which all parts fit together. Raises InputError, which names the set `name`, if they do not."""
    if not isinstance(dataset, Dataset):
        raise InputError(f"{KEY} = {name!r}: it returns {type(dataset).__name__}, not a fedkd.Dataset.")
    for one in dataset.classes:
        if not isinstance(one, str) or not one.strip() or not one.isprintable() or len(one) > _LONGEST_NAME:
            said = on_one_line(repr(one), 60)
            raise InputError(f"{KEY} = {name!r}: a class is named {said}; a name is one line of letters, in UTF-8.")
    for part in ("train", "test"):
        images, labels, *_ = getattr(dataset, part)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            have = f"{getattr(images, 'dtype', type(images).__name__)}, {getattr(images, 'shape', '')}"
            raise InputError(f"{KEY} = {name!r}: {part} images are {have}; they must be uint8, N x C x H x W.")
        if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.shape != (len(images),):
            raise InputError(f"{KEY} = {name!r}: {part} labels must be int64, one for each of {len(images)} images.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes):
            raise InputError(
                f"{KEY} = {name!r}: {part} labels are {labels.min()} to {labels.max()}, but there are "
                f"{len(dataset.classes)} classes."
            )
    return dataset


def reshape(dataset: Dataset, size: int | None, channels: int | None) -> Dataset:
    """Return the set with images of `size` x `size` pixels and `channels` channels; None changes nothing.

    Raises InputError if training and test images are of unlike shapes and the config gives no common one.
    """
    mean, deviation = dataset.mean, dataset.deviation
    shapes = [part.images.shape[1:] for part in (dataset.train, dataset.test)]
    unlike = [("data.size", size is None and shapes[0][1:] != shapes[1][1:]),
              ("data.channels", channels is None and shapes[0][0] != shapes[1][0])]  # fmt: skip
    if keys := [key for key, differs in unlike if differs]:
        have = " and ".join("x".join(map(str, shape)) for shape in shapes)
        raise InputError(
            f"{KEY}: training and test images are {have} (channels x height x width); set {' and '.join(keys)} to give "
            "them the same shape."
        )
    wanted = channels or dataset.train.images.shape[1]
    if len(mean) != wanted:
        mean, deviation = ((m[0] if len(set(m)) == 1 else sum(m) / len(m),) * wanted for m in (mean, deviation))
    train, test = (Images(_pixels(part.images, size, wanted), part.labels) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, mean=mean, deviation=deviation)


def _pixels(images: np.ndarray, size: int | None, channels: int) -> np.ndarray:
    if channels == images.shape[1] and size in (None, images.shape[2]) and images.shape[2] == images.shape[3]:
        return images
    from torchvision.transforms.v2 import functional  # imported here because it takes two seconds

    tensor = torch.from_numpy(images)
    if channels == 3 and tensor.shape[1] == 1:
        tensor = tensor.expand(-1, 3, -1, -1)
    elif channels == 1 and tensor.shape[1] == 3:
        tensor = functional.rgb_to_grayscale(tensor)
    if size and tuple(tensor.shape[2:]) != (size, size):
        tensor = functional.resize(tensor, [size, size], antialias=True)
    return np.ascontiguousarray(tensor.numpy())

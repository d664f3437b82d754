"""Labelled samples, and named sets of samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InputError, on_one_line
from .spec import DataSpec, Task

KEY, SOURCE = "data.name", "data"  # SOURCE: data.name, data.file or a site's data
LARGEST = {"uint8": 255.0, "uint16": 65535.0}  # by type of an image: the value that becomes 1
IMAGE_TYPES = ("uint8", "uint16", "float32", "float64")
RAW_TYPES = {"table": ("float64",), "series": ("float32",), "tokens": ("int64",), "array": ("float32", "float64")}
MOST = 1e30  # the largest absolute value of a sample
_MOST_TARGET = 1e15  # the largest absolute value of a target: squares of errors are finite in float32
_LOOK = 4096  # samples that are looked at together
_LONGEST_NAME = 200  # letters of a class
PIXEL_MAX = 255  # the largest pixel value of a uint8 image


class Rows(NamedTuple):
    """Where samples come from: their positions in the inputs of a whole set."""

    whole: np.ndarray
    positions: np.ndarray


class Samples(NamedTuple):
    """Labelled samples: `inputs`, N x ..., as the set's `DataSpec` says; `labels`: classes, int64, N; or, by its task,
    several labels, 0 or 1, or targets in their units, N x their number, float64.

    `encoded`: the inputs are what models take (see `Form`), such as virtual ones. Raw ones are encoded in batches.
    `rows`: where they come from, if it is known: a GPU may have them already.
    """

    inputs: np.ndarray
    labels: np.ndarray
    encoded: bool = False
    rows: Rows | None = None

    def take(self, index: np.ndarray) -> Samples:
        """Return the samples at these positions."""
        rows = None if self.rows is None else Rows(self.rows.whole, self.rows.positions[index])
        return Samples(self.inputs[index], self.labels[index], self.encoded, rows)


@dataclass(frozen=True)
class Dataset:
    """A named set: training and test samples, and the names of classes, labels or targets.

    `mean`, `deviation`: of the values of images (0 to 1), one per channel; without them the nodes' training samples are
    measured. `spec`: what the samples are; without it they are images, N x C x H x W, of uint8, uint16 or floats.
    `nodes`: who has each training and each test sample, by name, if the set says so.
    """

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    spec: DataSpec | None = None
    nodes: tuple[np.ndarray, np.ndarray] | None = None
    notes: tuple[str, ...] = ()  # what was done to values of the file that are missing or odd, with counts
    validation: np.ndarray | None = None  # bool, N: which training samples are for the validation of who has them

    @property
    def about(self) -> DataSpec:
        """Return what the samples are."""
        if self.spec is not None:
            return self.spec
        inputs = self.train.inputs
        return DataSpec(kind="image", shape=inputs.shape[1:], largest=LARGEST.get(inputs.dtype.name))


def checked(dataset: object, name: str, key: str = KEY) -> Dataset:
    """Return a set of which all parts fit together. Raises InputError, which names the set `name`, if they do not."""
    key = f"{key} = {name!r}"
    if not isinstance(dataset, Dataset):
        raise InputError(f"{key}: it returns {type(dataset).__name__}, not a fedkd.Dataset.")
    for one in dataset.classes:
        if not isinstance(one, str) or not one.strip() or not one.isprintable() or len(one) > _LONGEST_NAME:
            said = on_one_line(repr(one), 60)
            raise InputError(f"{key}: a class is named {said}; a name is one line of letters, in UTF-8.")
    for part in ("train", "test"):
        samples: Samples = getattr(dataset, part)
        inputs, labels = samples.inputs, samples.labels
        if not isinstance(inputs, np.ndarray):
            raise InputError(f"{key}: {part} samples are {type(inputs).__name__}; they must be a NumPy array.")
        if dataset.spec is None and (inputs.dtype.name not in IMAGE_TYPES or inputs.ndim != 4):
            raise InputError(
                f"{key}: {part} images are {inputs.dtype}, {inputs.shape}; they must be {', '.join(IMAGE_TYPES)}, "
                "N x C x H x W. Give the set a `spec` if they are no images."
            )
        if dataset.about.task != "classification":
            _check_labels(labels, (len(inputs), len(dataset.classes)), dataset.about.task, f"{key}: {part}")
        elif not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.shape != (len(inputs),):
            noun = dataset.about.noun(2)
            raise InputError(f"{key}: {part} labels must be int64, one for each of {len(inputs)} {noun}.")
        elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes):
            raise InputError(
                f"{key}: {part} labels are {labels.min()} to {labels.max()}, but there are "
                f"{len(dataset.classes)} classes."
            )
        _check_values(inputs, dataset.about, f"{key}: {part}")
    return dataset


def _check_labels(labels: object, shape: tuple[int, int], task: Task, where: str) -> None:
    """Raise InputError for labels of a task other than classification that are not as `Samples` says."""
    if not isinstance(labels, np.ndarray) or labels.dtype != np.float64 or labels.shape != shape:
        have = f"{labels.dtype}, {labels.shape}" if isinstance(labels, np.ndarray) else type(labels).__name__
        raise InputError(f"{where} labels are {have}; of the task {task} they must be float64, {shape}.")
    odd, valid = odd_labels(labels, task)
    if odd.any():
        raise InputError(f"{where} labels: {int(odd.sum())} values are not {valid}{first_places(odd)}.")


def odd_labels(labels: np.ndarray, task: Task) -> tuple[np.ndarray, str]:
    """Return which labels, or targets, are not as the task needs them, and what it needs."""
    if task == "multilabel":
        return ~np.isin(labels, (0, 1)), "0 or 1"
    return ~(np.abs(labels) <= _MOST_TARGET), f"finite and at most {_MOST_TARGET:g}"


def _check_values(inputs: np.ndarray, spec: DataSpec, where: str) -> None:
    """Raise InputError for samples that are not as their description says."""
    noun = spec.noun(2)
    if 0 in inputs.shape[1:]:
        raise InputError(f"{where} {noun} are {inputs.dtype}, {inputs.shape}; a sample needs values.")
    if inputs.shape[1:] != spec.shape and spec.kind != "image":  # training and test images may differ: see `reshape`
        raise InputError(f"{where} {noun} have the shape {inputs.shape[1:]}; the set's spec says {spec.shape}.")
    wanted = RAW_TYPES.get(spec.kind, IMAGE_TYPES)
    if inputs.dtype.name not in wanted:
        raise InputError(f"{where} {noun} are {inputs.dtype}; they must be {' or '.join(wanted)}.")
    if spec.kind == "tokens":
        if len(inputs) and not 0 <= int(inputs.min()) <= int(inputs.max()) < len(spec.words):
            raise InputError(
                f"{where} {noun} have ids from {inputs.min()} to {inputs.max()}; the vocabulary has {len(spec.words)}."
            )
        return
    if inputs.dtype.kind != "f":
        return
    for first in range(0, len(inputs), _LOOK):
        part = inputs[first : first + _LOOK]
        odd = np.isinf(part) if spec.kind in ("table", "series") else ~np.isfinite(part)
        odd |= np.abs(np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)) > MOST
        if odd.any():
            raise InputError(
                f"{where} {noun}: {int(odd.sum())} values are not finite or beyond {MOST:g}"
                f"{first_places(odd, start=first)}."
            )


def as_float32(array: np.ndarray) -> np.ndarray:
    """Return numbers as float32, the same array if they are; what is too large becomes infinite, and is refused."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def first_places(odd: np.ndarray, start: int = 0) -> str:
    """Return the end of an error: where the first values are true, positions in the array; `start` is its first row."""
    places = np.argwhere(odd)[:3]
    places[:, 0] += start
    shown = [str(place[0]) if len(place) == 1 else str(place) for place in places.tolist()]
    return f", the first at {', '.join(shown)}"


def reshape(dataset: Dataset, name: str, size: int | None, channels: int | None) -> Dataset:
    """Return the set with images of `size` x `size` pixels and `channels` channels; None changes nothing.

    Raises InputError if training and test images are of unlike shapes and the config gives no common one.
    """
    if dataset.about.kind != "image":
        for key, given in (("size", size), ("channels", channels)):
            if given is not None:
                raise InputError(f"data.{key} = {given}: it is for images; the set has {dataset.about.noun(2)}.")
        return dataset
    mean, deviation = dataset.mean, dataset.deviation
    shapes = [part.inputs.shape[1:] for part in (dataset.train, dataset.test)]
    unlike = [("data.size", size is None and shapes[0][1:] != shapes[1][1:]),
              ("data.channels", channels is None and shapes[0][0] != shapes[1][0])]  # fmt: skip
    if keys := [key for key, differs in unlike if differs]:
        have = " and ".join("x".join(map(str, shape)) for shape in shapes)
        raise InputError(
            f"{KEY} = {name!r}: training and test images are {have} (channels x height x width); set "
            f"{' and '.join(keys)} to give them the same shape."
        )
    wanted = channels or dataset.train.inputs.shape[1]
    if channels is not None and channels != dataset.train.inputs.shape[1] not in (1, 3):
        raise InputError(
            f"data.channels = {channels}: the images have {dataset.train.inputs.shape[1]} channels; only "
            "grey and colour images are converted."
        )
    if mean is not None and deviation is not None and len(mean) != wanted:
        mean, deviation = ((m[0] if len(set(m)) == 1 else sum(m) / len(m),) * wanted for m in (mean, deviation))
    sides = None if size is None else (size, size)
    train, test = (
        Samples(fitted_pixels(part.inputs, sides, wanted), part.labels) for part in (dataset.train, dataset.test)
    )
    spec = None if dataset.spec is None else dataset.spec.model_copy(update={"shape": train.inputs.shape[1:]})
    return replace(dataset, train=train, test=test, mean=mean, deviation=deviation, spec=spec)


def fitted_pixels(images: np.ndarray, sides: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Return images, N x C x H x W, with other sides (height, width) or channels: grey of three, or three of grey."""
    if channels == images.shape[1] and (sides is None or images.shape[2:] == sides):
        return images
    from torchvision.transforms.v2 import functional  # imported here because it takes two seconds

    tensor = torch.from_numpy(images if images.dtype != np.uint16 else images.astype(np.float32))
    if channels == 3 and tensor.shape[1] == 1:
        tensor = tensor.expand(-1, 3, -1, -1)
    elif channels == 1 and tensor.shape[1] == 3:
        tensor = functional.rgb_to_grayscale(tensor)
    if sides is not None and tuple(tensor.shape[2:]) != sides:
        tensor = functional.resize(tensor, list(sides), antialias=True)
    found = tensor.numpy()
    return np.ascontiguousarray(found.round().astype(np.uint16) if images.dtype == np.uint16 else found)

"""Named image sets: each a function that returns a `Dataset` of uint8 images and integer labels.

A set is read from `<root>/<name>.npz` where that file is there, else through torchvision's own class, which downloads
only when asked. `npz:<path>` reads arrays of yours, `images:<folder>` folders of images, one a class;
`cifar10c:<corruption>` is CIFAR-10 under a corruption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import InputError
from .registry import find, names
from .streams import numpy_stream

KEY = "data.name"


class Images(NamedTuple):
    """Labelled images: `images` uint8, N x C x H x W (virtual ones float32, normalised); `labels` int64, N."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, index: np.ndarray) -> Images:
        """Return the images at these positions."""
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A named set: its training and test images, class names, and pixel mean and deviation a channel (of 0..1)."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.5,)


def load(name: str, root: Path, *, download: bool, size: int | None, channels: int | None) -> Dataset:
    """Return the set called `name`, resized to `size` x `size` pixels and to `channels` (1 or 3) where given.

    Raises InputError where the set is unknown, its files are missing or wrong, or its images differ in size.
    """
    if name.startswith("npz:"):
        dataset = from_npz(root / name.removeprefix("npz:"))
    elif name.startswith("images:"):
        dataset = from_folders(root / name.removeprefix("images:"), size)
    elif name.startswith("cifar10c:"):
        from .corruptions import cifar10c

        clean = load("cifar10", root, download=download, size=None, channels=None)
        dataset = cifar10c(name.removeprefix("cifar10c:"), clean, root / "cifar10c", root)
    elif (root / f"{name}.npz").is_file():
        dataset = from_npz(root / f"{name}.npz")
        if name in names("datasets") and ":" not in name:
            mean, deviation = _STATISTICS.get(name, ((0.5,), (0.5,)))
            dataset = replace(dataset, mean=mean, deviation=deviation)
    else:
        if ":" not in name and name not in names("datasets"):
            _refuse_unknown(name, root)
        dataset = find("datasets", name, KEY)(root=root, download=download)
    return _reshape(dataset, size, channels)


def _refuse_unknown(name: str, root: Path) -> None:
    try:
        find("datasets", name, KEY)
    except InputError as error:
        raise InputError(f"{error} There is no {root / name}.npz either.") from None


def from_npz(path: Path) -> Dataset:
    """Return the set in a NumPy file: `x_train`, `x_test` (uint8, N x H x W [x C]), `y_train`, `y_test` (0..classes-1).

    An optional `classes` holds the class names. Raises InputError for a missing or wrong file.
    """
    if not path.is_file():
        raise InputError(f"{KEY}: there is no file {path}.")
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
            raise InputError(f"{KEY}: y_{part} in {path} must be one whole number an image of x_{part}.")
        if int(labels.min()) < 0:
            raise InputError(f"{KEY}: y_{part} in {path} has the label {labels.min()}; labels count from 0.")
        parts[part] = Images(_channels_first(images), labels.astype(np.int64))
    count = 1 + max(int(part.labels.max()) for part in parts.values())
    named = tuple(map(str, arrays["classes"])) if "classes" in arrays else tuple(map(str, range(count)))
    if len(named) < count:
        raise InputError(f"{KEY}: {path} names {len(named)} classes, but has the label {count - 1}.")
    return Dataset(parts["train"], parts["test"], named)


def from_folders(folder: Path, size: int | None) -> Dataset:
    """Return the set in folders of images: `<folder>/train/<class>/*` and `<folder>/test/<class>/*`.

    Without `train` and `test`, `<folder>/<class>/*` is split: every fifth image of a class, by file name, is for the
    test. Images of unequal size need `size`. Raises InputError for missing, empty or unreadable folders.
    """
    if not folder.is_dir():
        raise InputError(f"{KEY}: there is no folder {folder}.")
    split = (folder / "train").is_dir() and (folder / "test").is_dir()
    home = folder / "train" if split else folder
    classes = tuple(sorted(p.name for p in home.iterdir() if p.is_dir()))
    if len(classes) < 2:
        raise InputError(f"{KEY}: {home} has {len(classes)} class folders; it needs one folder a class, two at least.")
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
                f"{pixels[0].shape[1]} x {pixels[0].shape[0]}; set data.size to bring them to one size."
            )
    return Images(_channels_first(np.stack(pixels)), np.array([label for _, label in files], np.int64))


def _channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))


def _reshape(dataset: Dataset, size: int | None, channels: int | None) -> Dataset:
    mean, deviation = dataset.mean, dataset.deviation
    wanted = channels or dataset.train.images.shape[1]
    if len(mean) != wanted:
        mean, deviation = ((m[0] if len(set(m)) == 1 else sum(m) / len(m),) * wanted for m in (mean, deviation))
    train, test = (Images(_pixels(part.images, size, wanted), part.labels) for part in (dataset.train, dataset.test))
    return replace(dataset, train=train, test=test, mean=mean, deviation=deviation)


def _pixels(images: np.ndarray, size: int | None, channels: int) -> np.ndarray:
    if channels == images.shape[1] and size in (None, images.shape[2]) and images.shape[2] == images.shape[3]:
        return images
    from torchvision.transforms.v2 import functional  # two seconds, which only a set of another form costs

    tensor = torch.from_numpy(images)
    if channels == 3 and tensor.shape[1] == 1:
        tensor = tensor.expand(-1, 3, -1, -1)
    elif channels == 1 and tensor.shape[1] == 3:
        tensor = functional.rgb_to_grayscale(tensor)
    if size and tuple(tensor.shape[2:]) != (size, size):
        tensor = functional.resize(tensor, [size, size], antialias=True)
    return np.ascontiguousarray(tensor.numpy())


# Mean and standard deviation of the training pixels, as usual for these sets.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "emnist": ((0.1751,), (0.3332,)),
    "usps": ((0.2539,), (0.3842,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "digits": ((0.3053,), (0.3760,)),
}


def digits(*, root: Path, download: bool) -> Dataset:
    """Return scikit-learn's digits: 1,797 images of 8 x 8 pixels; a fifth of each class, fixed, is for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    rng = numpy_stream(0, 0, "server", "digits-test-split")
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: len(members) // 5]] = True
    both = Images(_channels_first(images), labels)
    mean, deviation = _STATISTICS["digits"]
    names10 = tuple(map(str, range(10)))
    return Dataset(both.take(~is_test), both.take(is_test), names10, mean, deviation)


def _torchvision(name: str, root: Path, download: bool, make: Callable[[bool], Any]) -> Dataset:
    parts = {}
    for train in (True, False):
        try:
            source = make(train)
        except (RuntimeError, FileNotFoundError, OSError) as error:
            raise InputError(
                f"{KEY}: the files of {name!r} are not under data.root = {root}: there is no {root / name}.npz, and "
                f"torchvision says: {str(error).splitlines()[0]} Set data.download = true to download them."
            ) from error
        images = np.asarray(source.data)
        labels = np.asarray(source.labels if name == "svhn" else source.targets, np.int64)
        if name == "emnist":  # torchvision keeps NIST's transposed images; the balanced split counts from 0
            images = images.transpose(0, 2, 1)
        parts[train] = Images(np.ascontiguousarray(images) if name == "svhn" else _channels_first(images), labels)
    count = 1 + int(max(part.labels.max() for part in parts.values()))
    classes = tuple(map(str, getattr(source, "classes", None) or range(count)))
    mean, deviation = _STATISTICS[name]
    return Dataset(parts[True], parts[False], classes, mean, deviation)


def _by_train_flag(name: str, class_name: str, root: Path, download: bool, **extra: Any) -> Dataset:
    from torchvision import datasets as sets

    source = getattr(sets, class_name)
    return _torchvision(name, root, download, lambda train: source(root, train=train, download=download, **extra))


def mnist(*, root: Path, download: bool) -> Dataset:
    """Return MNIST (LeCun et al., 1998): 60,000 + 10,000 digits of 28 x 28 pixels."""
    return _by_train_flag("mnist", "MNIST", root, download)


def fashion_mnist(*, root: Path, download: bool) -> Dataset:
    """Return Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 pictures of clothes, 28 x 28 pixels."""
    return _by_train_flag("fashion_mnist", "FashionMNIST", root, download)


def emnist(*, root: Path, download: bool) -> Dataset:
    """Return EMNIST's balanced split (Cohen et al., 2017): 112,800 + 18,800 letters and digits, 47 classes, upright."""
    return _by_train_flag("emnist", "EMNIST", root, download, split="balanced")


def cifar10(*, root: Path, download: bool) -> Dataset:
    """Return CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32 pixels."""
    return _by_train_flag("cifar10", "CIFAR10", root, download)


def cifar100(*, root: Path, download: bool) -> Dataset:
    """Return CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32 x 32 pixels, 100 classes."""
    return _by_train_flag("cifar100", "CIFAR100", root, download)


def svhn(*, root: Path, download: bool) -> Dataset:
    """Return SVHN (Netzer et al., 2011): 73,257 + 26,032 house numbers, 32 x 32 pixels."""
    from torchvision import datasets as sets

    def make(train: bool) -> Any:
        return sets.SVHN(str(root), split="train" if train else "test", download=download)

    return _torchvision("svhn", root, download, make)


def usps(*, root: Path, download: bool) -> Dataset:
    """Return USPS (Hull, 1994): 7,291 + 2,007 digits of 16 x 16 pixels."""
    return _by_train_flag("usps", "USPS", root, download)

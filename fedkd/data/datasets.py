"""Named sets: each a function that returns a `Dataset`.

A set is read from `<root>/<name>.npz` if this file exists, otherwise through torchvision's class, which downloads it
only if `data.download` is set. `npz:<path>` reads your own arrays, `images:<folder>` your own folders of images, one
for each class; `cifar10c:<corruption>` is CIFAR-10 under a corruption; `file.py:function` and
`torchvision.datasets:<class>` are functions and classes of others, see `functions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, MissingFiles, on_one_line
from ..registry import find, names
from ..streams import numpy_stream
from .arrays import channels_first
from .folders import from_folders
from .functions import from_function
from .npz import from_npz
from .samples import KEY, PIXEL_MAX, Dataset, Samples, checked, reshape


def load(
    name: str,
    root: Path,
    *,
    download: bool,
    size: int | None,
    channels: int | None,
    config: SetsConfig | None = None,
) -> Dataset:
    """Return the set `name`, its images resized to `size` x `size` and converted to `channels` (1 or 3) if given.

    `config`: what else says how arrays are read.

    Raises InputError if the set is unknown, its files are missing or wrong, or its images differ in size.
    """
    try:
        dataset = _found(name, root, download=download, size=size, config=config or SetsConfig())
    except OSError as error:  # such as a name that is too long, or a folder that may not be read
        where = f" ({on_one_line(str(error.filename), 100)})" if error.filename else ""
        said = f"{KEY} = {on_one_line(name, 100)!r} in data.root = {on_one_line(str(root), 100)!r}"
        raise InputError(f"{said}: {error.strerror}{where}.") from error
    return reshape(checked(dataset, name), name, size, channels)


def _found(name: str, root: Path, *, download: bool, size: int | None, config: SetsConfig) -> Dataset:
    if name.startswith("npz:"):
        dataset = from_npz(_in(root, name.removeprefix("npz:")), config)
    elif name.startswith("images:"):
        dataset = from_folders(_in(root, name.removeprefix("images:")), size)
    elif name.startswith("cifar10c:"):
        from .cifar10c import cifar10c

        clean = load("cifar10", root, download=download, size=None, channels=None)
        dataset = cifar10c(name.removeprefix("cifar10c:"), clean, root / "cifar10c", root)
    elif (root / f"{name}.npz").is_file():
        dataset = from_npz(root / f"{name}.npz", config)
        if name in names("datasets") and ":" not in name:
            mean, deviation = STATISTICS.get(name, ((0.5,), (0.5,)))
            dataset = replace(dataset, mean=mean, deviation=deviation)
    else:
        if ":" not in name and name not in names("datasets"):
            _refuse_unknown(name, root)
        dataset = from_function(find("datasets", name, KEY), name, root, download, size, config)
    return dataset


def _in(root: Path, name: str) -> Path:
    """Return the path that a name means: in `root`, absolute, or in the home folder (`~`)."""
    return root / Path(name).expanduser()


def _refuse_unknown(name: str, root: Path) -> None:
    try:
        find("datasets", name, KEY)
    except InputError as error:
        raise InputError(f"{error} There is no {root / name}.npz either.") from None


# Mean and standard deviation of the training pixels: the usual values for these sets.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
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
    """Return scikit-learn's digits: 1,797 images of 8 x 8 pixels; a fixed fifth of each class is for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (PIXEL_MAX / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    rng = numpy_stream(0, 0, "server", "digits-test-split")
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: len(members) // 5]] = True
    both = Samples(channels_first(images), labels)
    mean, deviation = STATISTICS["digits"]
    names10 = tuple(map(str, range(10)))
    return Dataset(both.take(~is_test), both.take(is_test), names10, mean, deviation)


def digits_float(*, root: Path, download: bool) -> Dataset:
    """Return scikit-learn's digits as floats, 0 to 16, as they are stored; their statistics are measured."""
    whole = digits(root=root, download=download)
    train, test = (
        Samples((part.inputs * (16 / PIXEL_MAX)).round().astype(np.float32), part.labels)
        for part in (whole.train, whole.test)
    )
    return Dataset(train, test, whole.classes)


def _torchvision(name: str, root: Path, download: bool, make: Callable[[bool], Any]) -> Dataset:
    parts = {}
    for train in (True, False):
        try:
            source = make(train)
        except (RuntimeError, FileNotFoundError, OSError) as error:
            raise MissingFiles(
                f"{KEY}: the files of {name!r} are not under data.root = {root}: there is no {root / name}.npz, and "
                f"torchvision says: {str(error).splitlines()[0]} Set data.download = true to download them."
            ) from error
        images = np.asarray(source.data)
        labels = np.asarray(source.labels if name == "svhn" else source.targets, np.int64)
        if name == "emnist":  # torchvision's images are transposed, as in NIST; labels of the balanced split start at 0
            images = images.transpose(0, 2, 1)
        parts[train] = Samples(np.ascontiguousarray(images) if name == "svhn" else channels_first(images), labels)
    count = 1 + int(max(part.labels.max() for part in parts.values()))
    # torchvision calls MNIST's classes "0 - zero", ...; the digits of all sets must have the same names
    classes = tuple(str(one).split(" - ")[0] for one in getattr(source, "classes", None) or range(count))
    mean, deviation = STATISTICS[name]
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

"""Named sets: from files beside and through torchvision; and what is missing is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.datasets import load
from fedkd.errors import InputError


def read(name: str, root: Path, size: int | None = None, channels: int | None = None) -> object:
    return load(name, root, download=False, size=size, channels=channels)


def test_digits_are_split_once_and_for_all() -> None:
    one, two = read("digits", Path()), read("digits", Path())
    assert one.train.inputs.shape == (1442, 1, 8, 8)
    assert one.test.inputs.shape == (355, 1, 8, 8)
    assert one.train.inputs.dtype == np.uint8
    assert one.train.inputs.max() == 255
    assert np.array_equal(one.test.labels, two.test.labels)
    assert set(np.bincount(one.test.labels)) <= {34, 35, 36}
    pixels = one.train.inputs / 255
    assert abs(pixels.mean() - one.mean[0]) < 0.01
    assert abs(pixels.std() - one.deviation[0]) < 0.01


def test_mnist_is_mnist(mnist_root: Path) -> None:
    data = read("mnist", mnist_root)
    assert np.bincount(data.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.inputs.shape == (60000, 1, 28, 28)
    assert abs((data.train.inputs / 255).mean() - data.mean[0]) < 1e-3
    assert abs((data.train.inputs / 255).std() - data.deviation[0]) < 1e-3
    usps = read("usps", mnist_root)
    assert abs((usps.train.inputs / 255).mean() - usps.mean[0]) < 5e-3
    svhn = read("svhn", mnist_root, size=16, channels=1)
    assert svhn.train.inputs.shape == (554, 1, 16, 16)
    assert len(svhn.mean) == 1


def test_what_is_missing_or_no_image_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "pickled.npz").write_bytes(b"\x80\x04.")
    (tmp_path / "one" / "only").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "broken" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "broken" / name / f"x{i}.png").write_text("no picture")
    for size, name in ((8, "a"), (9, "b")):
        (tmp_path / "unequal" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / "unequal" / name / f"{i}.png")
    for name, message in [
        ("mnsit", r"unknown 'mnsit'; did you mean 'mnist'.*There is no .*mnsit.npz either"),
        ("mnist", r"there is no .*mnist.npz, and torchvision says: .*data.download = true"),
        ("cifar10", r"torchvision says"),
        ("svhn", r"torchvision says"),
        ("npz:none.npz", "there is no file"),
        ("npz:text.npz", "not a NumPy archive"),
        ("npz:pickled.npz", "not a NumPy archive"),
        ("images:none", "there is no folder"),
        ("images:one", "has no images in class folders; .* Found: the folders only"),
        ("images:broken", "cannot be read: .*x0.png: cannot identify .* Another 9 images"),
        ("images:unequal", "is 9 x 9 pixels, .* is 8 x 8; set data.size"),
    ]:
        with pytest.raises(InputError, match=message):
            read(name, tmp_path)
    assert read("images:unequal", tmp_path, size=8).train.inputs.shape == (8, 3, 8, 8)


def test_torchvisions_own_classes_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchvision returns for each set goes through; its file formats are torchvision's to test."""
    from torchvision import datasets as sets

    asked = []

    class Fake:
        def __init__(self, root: object, **options: object) -> None:
            asked.append((type(self).__name__, options))
            self.data = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
            self.targets = [0, 46]

    monkeypatch.setattr(sets, "EMNIST", Fake)
    data = load("emnist", tmp_path, download=True, size=None, channels=None)
    assert data.train.inputs.shape == (2, 1, 5, 3)  # upright
    assert len(data.classes) == 47
    assert asked == [("Fake", {"train": flag, "download": True, "split": "balanced"}) for flag in (True, False)]

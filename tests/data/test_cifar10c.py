"""CIFAR-10-C: the set, its frost, and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fedkd.data.cifar10c import corrupted
from fedkd.data.datasets import load
from fedkd.errors import InputError

RNG = np.random.default_rng(0)


def photographs(count: int) -> np.ndarray:
    """Return smooth colourful images, uint8, N x 3 x 32 x 32."""
    rough = RNG.random((count, 3, 32, 32))
    smooth = ndimage.gaussian_filter(rough, (0, 0, 3, 3))
    return (255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)


def write_clean(root: Path, count: int = 20) -> None:
    images = photographs(count).transpose(0, 2, 3, 1)
    labels = np.arange(count) % 10
    np.savez(root / "cifar10.npz", x_train=images[:2], y_train=labels[:2], x_test=images, y_test=labels)


def read(name: str, root: Path) -> object:
    return load(name, root, download=False, size=None, channels=None)


def test_the_set_has_nine_tenths_of_each_severity_to_train(tmp_path: Path) -> None:
    write_clean(tmp_path)
    data = read("cifar10c:contrast", tmp_path)
    assert data.train.inputs.shape == (90, 3, 32, 32)
    assert data.test.inputs.shape == (10, 3, 32, 32)
    assert data.test.labels.tolist() == [8, 9] * 5
    assert data.train.labels[:20].tolist() == [*range(10), *range(8), 0, 1]
    clean = read("cifar10", tmp_path)
    assert np.array_equal(data.test.inputs[8:], corrupted("contrast", clean.test.inputs, 5, tmp_path)[18:])
    assert len(data.mean) == 3
    kept = tmp_path / "cifar10c" / "contrast.npz"
    assert kept.is_file()
    assert np.array_equal(read("cifar10c:contrast", tmp_path).train.inputs, data.train.inputs)
    assert [p.name for p in kept.parent.iterdir()] == ["contrast.npz"]
    kept.write_bytes(b"damaged")
    assert np.array_equal(read("cifar10c:contrast", tmp_path).train.inputs, data.train.inputs)
    write_clean(tmp_path, 40)  # another clean set: what was kept is of no use
    assert len(read("cifar10c:contrast", tmp_path).train.labels) == 180


def test_frost_takes_photographs_from_a_folder_or_says_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clean(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="imagecorruptions"):
        read("cifar10c:frost", tmp_path)
    (tmp_path / "frost").mkdir()
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        Image.fromarray(np.full((300, 260, 3), 200, np.uint8)).save(tmp_path / "frost" / name)
    data, clean = read("cifar10c:frost", tmp_path), read("cifar10", tmp_path)
    expected = np.clip(0.9 * clean.test.inputs[18:] / 255 + 0.4 * 200 / 255, 0, 1) * 255
    assert np.abs(data.test.inputs[4:6] - expected).max() < 2


def test_an_unknown_corruption_is_named(tmp_path: Path) -> None:
    write_clean(tmp_path)
    with pytest.raises(InputError, match="did you mean 'cifar10c:contrast'"):
        read("cifar10c:contrasts", tmp_path)

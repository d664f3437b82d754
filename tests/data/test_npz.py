"""Arrays of one's own in a NumPy file, and wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedkd.data.datasets import load
from fedkd.errors import InputError

RNG = np.random.default_rng(0)


def write_npz(path: Path, **changes: object) -> None:
    arrays = {
        "x_train": RNG.integers(0, 256, (30, 6, 6)).astype(np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": RNG.integers(0, 256, (9, 6, 6)).astype(np.uint8),
        "y_test": np.arange(9) % 3,
    }
    arrays.update(changes)  # type: ignore[arg-type]
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def read(name: str, root: Path, size: int | None = None, channels: int | None = None) -> object:
    return load(name, root, download=False, size=size, channels=channels)


def test_arrays_of_ones_own(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine.npz", classes=np.array(["cat", "dog", "cow"]))
    data = read("npz:mine.npz", tmp_path)
    assert data.classes == ("cat", "dog", "cow")
    assert data.train.images.shape == (30, 1, 6, 6)
    assert read("mine", tmp_path).classes == data.classes  # any <root>/<name>.npz is a named set
    assert read("mine", tmp_path, size=12, channels=3).train.images.shape == (30, 3, 12, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks x_test"),
        ({"x_train": np.zeros((30, 6, 6), np.float32)}, "x_train .* is float32"),
        ({"x_train": np.zeros((30, 6, 6, 4), np.uint8)}, "30 x 6 x 6 x 4"),
        ({"y_train": np.zeros(29, np.int64)}, "y_train .* one whole number for each image"),
        ({"y_train": np.zeros(30)}, "y_train .* one whole number"),
        ({"y_test": np.full(9, -1)}, "label -1; labels count from 0"),
        ({"classes": np.array(["cat"])}, "names 1 classes, but has the label 2"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(InputError, match=message):
        read("npz:mine.npz", tmp_path)

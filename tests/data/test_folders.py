"""Folders of images, one for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fedkd.data.datasets import load


def read(name: str, root: Path, size: int | None = None, channels: int | None = None) -> object:
    return load(name, root, download=False, size=size, channels=channels)


def test_folders_of_images(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("left", "right")):
            folder = tmp_path / "xrays" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((8, 8, 3), 40 * label + i, np.uint8)).save(folder / f"{i}.png")
    data = read("images:xrays", tmp_path)
    assert data.classes == ("left", "right")
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 40, 41, 42, 43, 44]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    unsplit = read("images:xrays/train", tmp_path)
    assert unsplit.test.images[:, 0, 0, 0].tolist() == [4, 44]
    assert len(unsplit.train.labels) == 8

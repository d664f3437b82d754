"""The augmentation of DC's code: each image becomes one of all the windows, scaled images and rotations there are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate

from fedkd.distillation.dc_augmentation import dc_augment
from fedkd.distillation.distillers import train_epoch
from fedkd.distillation.virtual_images import Virtual
from fedkd.streams import numpy_stream, torch_stream

SHAPE = (2, 10, 13)
IMAGE = numpy_stream(0, 0, 0, "image").normal(size=SHAPE).astype(np.float32)


def middle(image: np.ndarray) -> np.ndarray:
    top, left = ((have - want) // 2 for have, want in zip(image.shape[1:], SHAPE[1:], strict=True))
    return image[:, top : top + SHAPE[1], left : left + SHAPE[2]]


def valid(means: np.ndarray) -> tuple[list[tuple[str, int, int]], np.ndarray]:
    """Return the names of all images that may come out, and these; `means`: of the channels over the batch."""
    found: dict[tuple[str, int, int], np.ndarray] = {}
    padded = np.stack([np.pad(one, 4, constant_values=mean) for one, mean in zip(IMAGE, means, strict=True)])
    for top in range(8):
        for left in range(8):
            found["crop", top, left] = padded[:, top : top + 10, left : left + 13]
    for height in range(8, 12):
        for width in range(8, 12):  # of the height too
            rows, columns = np.arange(height) * 10 // height, np.arange(width) * 13 // width
            canvas = np.zeros((2, 13, 13))
            top, left = (13 - height) // 2, (13 - width) // 2
            canvas[:, top : top + height, left : left + width] = IMAGE[:, rows[:, None], columns]
            found["scale", height, width] = middle(canvas)
    for angle in range(-45, 45):
        found["rotate", angle, 0] = middle(rotate(IMAGE, angle, axes=(1, 2), cval=means.mean()))
    return [*found], np.stack([*found.values()])


def test_each_image_becomes_one_of_all_the_changes_there_are() -> None:
    other = torch.full((1, *SHAPE), 5.0)  # the border has the means of the whole batch
    batch = torch.cat([torch.from_numpy(IMAGE).repeat(3000, 1, 1, 1), other])
    before = batch.clone()
    changed = dc_augment(batch, torch_stream(0, 0, 0, "x"))
    assert torch.equal(batch, before)
    names, every = valid(batch.mean((0, 2, 3)).numpy())
    seen: Counter[tuple[str, int, int]] = Counter()
    for image in changed[:-1]:
        apart = np.abs(every - image.numpy()).max((1, 2, 3))
        assert apart.min() < 1e-4
        seen[names[int(apart.argmin())]] += 1
    kinds = Counter(kind for kind, *_ in seen)
    assert kinds == {"crop": 64, "scale": 16, "rotate": 89}  # by 0 degrees is the crop in the middle
    share = {kind: sum(count for one, count in seen.items() if one[0] == kind) / 3000 for kind in kinds}
    assert share == pytest.approx(dict.fromkeys(kinds, 1 / 3), abs=0.03)


def test_networks_are_judged_on_the_changed_images() -> None:
    virtual = Virtual(torch.from_numpy(IMAGE).repeat(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
    seen: list[torch.Tensor] = []

    class Seeing(torch.nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().forward(images.flatten(1))

    with torch.random.fork_rng():
        model = Seeing(260, 2)
    train_epoch(model, virtual, torch.optim.SGD(model.parameters(), lr=0.1), 4, "dc", torch_stream(0, 0, 0, "x"))
    _, every = valid(IMAGE.mean((1, 2)))
    assert all(np.abs(every - image.numpy()).max((1, 2, 3)).min() < 1e-4 for image in seen[0])

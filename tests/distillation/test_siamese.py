"""Siamese augmentation: the published values, gradients through it, one change for a whole batch."""

from __future__ import annotations

import pytest
import torch
from helpers.distillation import det
from torch import Tensor

from fedkd.config import GROUPS
from fedkd.distillation.siamese import siamese_augment

AUGMENTED = {  # of the authors' DiffAugment with seed 7: sum, sum of squares, y[1, 2, 10, 11]
    "color": (853.37032, 5686.1678, 0.60690349),
    "crop": (63.595879, 2706.8927, 0.9952901),
    "cutout": (209.88834, 3012.0674, 0.3920784),
    "flip": (162.39549, 3563.9402, 0.3920784),
    "scale": (140.91622, 3043.8193, 0.46060199),
    "rotate": (151.17773, 3376.4327, 0.42243677),
}


# The published values


@pytest.mark.parametrize("group", GROUPS)
def test_each_augmentation_is_the_published_one(group: str) -> None:
    images = det((3, 3, 28, 28), 0.011, 0.4)
    changed = siamese_augment(images, 7, [group])
    total, squares, pixel = AUGMENTED[group]
    assert float(changed.sum()) == pytest.approx(total, abs=2e-3)
    assert float(changed.pow(2).sum()) == pytest.approx(squares, rel=1e-5)
    assert float(changed[1, 2, 10, 11]) == pytest.approx(pixel, abs=1e-5)


def test_the_groups_are_drawn_as_published() -> None:
    images = det((2, 3, 16, 16), 0.011, 0.4)
    drawn = ["cutout", "crop", "color", "scale", "scale", "rotate", "cutout", "flip", "flip", "scale", "rotate", "flip"]
    for seed, group in enumerate(drawn):
        mixed = siamese_augment(images, seed, GROUPS)
        assert torch.equal(mixed, siamese_augment(images, seed, [group]))


# Images that are not square


def changed(group: str, images: Tensor) -> set[tuple[float, ...]]:
    """Return everything that a group makes of an image, by many seeds."""
    return {tuple(siamese_augment(images, seed, [group]).flatten().tolist()) for seed in range(400)}  # type: ignore[list-item]


@pytest.mark.parametrize(("height", "width"), [(6, 20), (20, 6), (3, 4)])
def test_a_crop_shifts_each_side_by_up_to_an_eighth(height: int, width: int) -> None:
    down, right = {20: 3, 6: 1, 4: 1, 3: 0}[height], {20: 3, 6: 1, 4: 1, 3: 0}[width]  # 2.5, 0.75, 0.5, 0.375, rounded
    images = torch.arange(1.0, 1 + height * width).view(1, 1, height, width)
    wide = torch.nn.functional.pad(images, (right, right, down, down))
    assert changed("crop", images) == {
        tuple(wide[..., top : top + height, left : left + width].flatten().tolist())
        for top in range(2 * down + 1)
        for left in range(2 * right + 1)
    }


@pytest.mark.parametrize(("height", "width"), [(5, 8), (8, 5)])
def test_a_cutout_is_half_of_each_side_around_any_place(height: int, width: int) -> None:
    """Half of 5 is 3 rounded, around the pixels 0 to 4; half of 8 is 4, around the edges 0 to 8 between pixels."""
    images = torch.arange(1.0, 1 + height * width).view(1, 1, height, width)
    spans = {5: [range(at - 1, at + 2) for at in range(5)], 8: [range(at - 2, at + 2) for at in range(9)]}
    right = set()
    for rows in spans[height]:
        for columns in spans[width]:
            cut = images.clone()
            for row in set(rows) & set(range(height)):
                for column in set(columns) & set(range(width)):
                    cut[0, 0, row, column] = 0
            right.add(tuple(cut.flatten().tolist()))
    assert changed("cutout", images) == right


def test_by_default_all_groups_are_drawn_and_images_change_alike() -> None:
    images = det((3, 3, 8, 8), 0.011, 0.4)
    for seed in range(8):
        assert torch.equal(siamese_augment(images, seed), siamese_augment(images, seed, GROUPS, siamese=True))
    assert siamese_augment(images, 1, []) is images


# Gradients


@pytest.mark.parametrize("group", GROUPS)
def test_gradients_pass_through_each_augmentation(group: str) -> None:
    images = det((2, 3, 6, 6), 0.17, 0.6, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: siamese_augment(x, 5, [group]), images)  # type: ignore[list-item]


@pytest.mark.parametrize("group", GROUPS)
def test_siamese_images_change_alike_and_others_do_not(group: str) -> None:
    images = det((1, 3, 12, 12), 0.17, 0.6).expand(40, -1, -1, -1).contiguous()
    alike = siamese_augment(images, 3, [group])  # type: ignore[list-item]
    torch.testing.assert_close(alike, alike[:1].expand_as(alike))
    own = siamese_augment(images, 3, [group], siamese=False)  # type: ignore[list-item]
    assert own.shape == images.shape
    assert len(torch.unique(own.flatten(1), dim=0)) > 1

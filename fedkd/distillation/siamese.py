"""Differentiable Siamese augmentation: a random change of a batch through which gradients pass (Zhao, Bilen, 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import GROUPS, Group

_Uniform = Callable[[], Tensor]  # new draws from 0 to 1: B, or one for all images


def siamese_augment(images: Tensor, seed: int, groups: Sequence[Group] = GROUPS, *, siamese: bool = True) -> Tensor:
    """Return the batch changed by one group of `groups`, drawn by `seed` (Zhao and Bilen, 2021; mode S of its code).

    Images: B x C x H x W. `siamese`: the same parameters for every image, so that real and virtual images with the same
    seed change equally; otherwise each image has its own. The group is drawn from a generator with `seed`, its
    parameters from generators with `seed` + 1, + 2, ..., as in the authors' code, which seeds the global generator.

    color: brightness, saturation, contrast; crop: a shift by up to an eighth of the side, black border; cutout: a black
    square of half the side; flip: mirrored with probability 1/2; scale: each axis by 1/1.2 to 1.2; rotate: by up to 15
    degrees. Without groups the images do not change.
    """
    if not groups:
        return images
    draws = _generators(seed)
    group = groups[int(torch.randint(len(groups), (1,), generator=next(draws)))]
    shape = (1 if siamese else len(images), 1, 1, 1)

    def uniform() -> Tensor:
        return torch.rand(shape, generator=next(draws)).to(images.device, images.dtype)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=next(draws)).to(images.device)

    height, width = images.shape[2:]
    if group == "color":
        return _contrast(_saturation(images + (uniform() - 0.5), uniform), uniform)
    if group == "crop":
        reach = (int(height * 0.125 + 0.5), int(width * 0.125 + 0.5))
        return _shifted(images, whole(-reach[0], reach[0]), whole(-reach[1], reach[1]))
    if group == "cutout":
        size = (int(height * 0.5 + 0.5), int(width * 0.5 + 0.5))
        return _cut(images, size, whole(0, height - size[0] % 2), whole(0, width - size[1] % 2))
    if group == "flip":
        return torch.where(uniform() < 0.5, images.flip(3), images)
    if group == "scale":
        low, high = 1 / 1.2, 1.2
        x, y = (uniform() * (high - low) + low for _ in range(2))
        zero = torch.zeros_like(x)
        return _warped(images, [x, zero, zero, zero, y, zero])
    angle = (uniform() - 0.5) * 2 * 15 / 180 * math.pi
    sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    return _warped(images, [cosine, -sine, zero, sine, cosine, zero])


def _generators(seed: int) -> Iterator[torch.Generator]:
    while True:
        generator = torch.Generator()
        generator.manual_seed(seed)
        yield generator
        seed += 1


def _saturation(images: Tensor, uniform: _Uniform) -> Tensor:
    mean = images.mean(1, keepdim=True)
    return (images - mean) * (uniform() * 2) + mean


def _contrast(images: Tensor, uniform: _Uniform) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (uniform() + 0.5) + mean


def _grid(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices of images, rows and columns that broadcast to B x H x W."""
    index = torch.arange(len(images), device=images.device)[:, None, None]
    rows = torch.arange(images.shape[2], device=images.device)[None, :, None]
    columns = torch.arange(images.shape[3], device=images.device)[None, None, :]
    return index, rows, columns


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return the images moved so that pixel (i, j) is the old pixel (i + down, j + right); 0 outside."""
    index, rows, columns = _grid(images)
    rows = (rows + down[:, 0] + 1).clamp(0, images.shape[2] + 1)
    columns = (columns + right[:, 0] + 1).clamp(0, images.shape[3] + 1)
    return F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2).contiguous()


def _cut(images: Tensor, size: tuple[int, int], row: Tensor, column: Tensor) -> Tensor:
    _, rows, columns = _grid(images)
    top, left = row[:, 0] - size[0] // 2, column[:, 0] - size[1] // 2
    inside = (rows >= top) & (rows < top + size[0]) & (columns >= left) & (columns < left + size[1])
    return images * (~inside[:, None]).to(images.dtype)


def _warped(images: Tensor, matrix: Sequence[Tensor]) -> Tensor:
    theta = torch.stack([entry.flatten() for entry in matrix], 1).view(-1, 2, 3).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, align_corners=True)

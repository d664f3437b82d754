"""The augmentation with which DC's code judges virtual images of MNIST (Zhao, Mopuri, Bilen, 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.ndimage import rotate
from torch import Tensor
from torch.nn import functional as F

_CROP = 4  # pixels
_SCALE = 0.2
_ANGLE = 45  # degrees

_Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def dc_augment(images: Tensor, stream: torch.Generator) -> Tensor:
    """Return the batch with each image changed by one of three changes, drawn for it; no gradient passes.

    As VICO-UoE/DatasetCondensation does with `crop_scale_rotate`. Crop: a window of the image with a border of 4
    pixels, which has the channels' means over the batch. Scale: each side times 0.8 to 1.2, nearest pixels, black
    outside. Rotate: by -45 to 44 degrees, cubic splines, the mean outside. Images: B x C x H x W.
    """
    means = images.mean((0, 2, 3))[:, None, None]
    changes: list[_Change] = [_cropped, _scaled, _rotated]
    return torch.stack([changes[_whole(0, len(changes), stream)](image, means, stream) for image in images])


def _whole(low: int, beyond: int, stream: torch.Generator) -> int:
    return int(torch.randint(low, beyond, (1,), generator=stream))


def _cropped(image: Tensor, means: Tensor, stream: torch.Generator) -> Tensor:
    height, width = image.shape[1:]
    padded = means.repeat(1, height + 2 * _CROP, width + 2 * _CROP)
    padded[:, _CROP : _CROP + height, _CROP : _CROP + width] = image
    top, left = (_whole(0, 2 * _CROP, stream) for _ in range(2))  # never 2 * _CROP: the code's range ends before it
    return padded[:, top : top + height, left : left + width]


def _scaled(image: Tensor, means: Tensor, stream: torch.Generator) -> Tensor:
    height, width = image.shape[1:]
    factors = 1 + _SCALE * (2 * torch.rand(2, generator=stream, dtype=torch.float64) - 1)
    new = [int(factor * height) for factor in factors.tolist()]  # both sides by the height, as in the code
    side = max(*new, height, width)
    canvas = torch.zeros(len(image), side, side, dtype=image.dtype, device=image.device)
    top, left = (side - new[0]) // 2, (side - new[1]) // 2
    canvas[:, top : top + new[0], left : left + new[1]] = F.interpolate(image[None], new)[0]
    return _middle(canvas, height, width)


def _rotated(image: Tensor, means: Tensor, stream: torch.Generator) -> Tensor:
    angle = _whole(-_ANGLE, _ANGLE, stream)
    turned = rotate(image.cpu().numpy(), angle, axes=(-2, -1), cval=float(means.mean()))
    return _middle(torch.from_numpy(turned).to(image), *image.shape[1:])


def _middle(image: Tensor, height: int, width: int) -> Tensor:
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]

"""Views: random augmentations of whole batches, with separate draws for each image, on the device of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.images import PIXEL_MAX
from ..models.zoo import Shape
from ..streams import default_stream
from .batches import Preprocess, crop_pad, shift_draws, shift_mirror

Augmentation = Literal["official", "simclr"]
Kind = Literal["official", "simclr", "fine_tuning"]
View = Callable[[np.ndarray, torch.Generator], Tensor]  # uint8 images, B x C x H x W, to normalised ones


def views_of(augmentation: Kind, sets: Sequence[str], shape: Shape, preprocess: Preprocess) -> View:
    """Return the function that makes views.

    `official`: as in FedX's code (Han et al., 2022): shifted and mirrored; for SVHN shifted, colours changed, rotated
    by up to 15 degrees, not mirrored. `simclr`: cropped to 20 to 100 % of the area and resized, mirrored, colours
    changed with probability 0.8, grey with probability 0.2 (Chen et al., 2020; as in FedU2's code). For images with one
    channel, only brightness and contrast change. `fine_tuning`: cropped to 64 to 100 %, square, resized, mirrored
    (FedU2's and SSD's code).
    """
    if augmentation == "official" and "svhn" not in sets:
        return lambda images, stream: view(images, preprocess, stream)
    from kornia import augmentation as kornia  # 64 images: 8.7 ms in one call; torchvision 24.2 ms, one image at a time

    size, colour = shape[1:], shape[0] == 3

    def jitter(strength: float, hue: float, p: float) -> nn.Module:
        return kornia.ColorJitter(strength, strength, strength if colour else 0.0, hue if colour else 0.0, p=p)

    if augmentation == "official":
        pad = max(1, shape[1] // 8)
        steps = [kornia.RandomCrop(size, padding=pad), jitter(0.4, 0.4, 1.0), kornia.RandomRotation(15.0, p=1.0)]
    elif augmentation == "fine_tuning":
        crop = kornia.RandomResizedCrop(size, scale=(0.64, 1.0), ratio=(1.0, 1.0))
        steps = [crop, kornia.RandomHorizontalFlip(p=0.5)]
    else:
        crop = kornia.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
        grey = [kornia.RandomGrayscale(p=0.2)] if colour else []
        steps = [crop, kornia.RandomHorizontalFlip(p=0.5), jitter(0.8, 0.2, 0.8), *grey]
    augment = nn.Sequential(*steps)

    def make(images: np.ndarray, stream: torch.Generator) -> Tensor:
        own = torch.Generator()
        own.manual_seed(int(torch.randint(2**62, (1,), generator=stream)))
        with default_stream(own):  # kornia draws only from torch's default generators
            batch = torch.from_numpy(images).to(preprocess.device)
            pixels = batch.to(torch.float32, memory_format=torch.contiguous_format) / PIXEL_MAX
            augmented: Tensor = augment(pixels.expand(-1, 3, -1, -1))  # the colour changes need three channels
        return preprocess.normalise(augmented[:, : shape[0]].contiguous())

    return make


def view(images: np.ndarray, preprocess: Preprocess, stream: torch.Generator) -> Tensor:
    """Return a normalised view of each image: shifted with a reflected border, and mirrored with probability 1/2.

    The shift is up to one eighth of the side (FedX's code on CIFAR-10: 4 pixels of 32). Images: uint8, B x C x H x W;
    each has its own draws.
    """
    pad = crop_pad(images.shape[2])
    padded = F.pad(preprocess(images), (pad, pad, pad, pad), mode="reflect")
    return shift_mirror(padded, pad, *shift_draws(len(images), pad, stream))

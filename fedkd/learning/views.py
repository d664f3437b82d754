"""Views: random changes of whole batches, with separate draws for each sample, on the device of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import Kind
from ..errors import InputError
from ..streams import default_stream
from . import kind_views as kinds
from .batches import Preprocess, crop_pad, shift_draws, shift_mirror

Augmentation = Literal["auto", "official", "simclr", "scarf", "vime", "tstcc", "tstcc_code", "tokens"]
Wanted = Augmentation | Literal["fine_tuning"]
View = Callable[[np.ndarray, torch.Generator], Tensor]  # raw samples, to encoded ones
_OF_KIND: dict[Kind, tuple[str, ...]] = {  # the first one is `auto`
    "image": ("official", "simclr"), "table": ("scarf", "vime"), "series": ("tstcc", "tstcc_code"),
    "tokens": ("tokens",),
}  # fmt: skip


def views_of(wanted: Wanted, sets: Sequence[str], preprocess: Preprocess, pool: np.ndarray) -> tuple[View, View]:
    """Return the functions that make the first and the second view of samples.

    Images: `official`, as in FedX's code (Han et al., 2022): shifted and mirrored; for SVHN shifted, colours changed,
    rotated by up to 15 degrees, not mirrored. `simclr`: cropped to 20 to 100 % of the area and resized, mirrored,
    colours changed with probability 0.8, grey with probability 0.2 (Chen et al., 2020; as in FedU2's code). For images
    with one channel, only brightness and contrast change; for other numbers of channels no colours. `fine_tuning`:
    cropped to 64 to 100 %, square, resized, mirrored (FedU2's and SSD's code); of other samples: unchanged.
    Tables: `scarf`, with cells of the rows in `pool`; `vime`. Series: `tstcc`, `tstcc_code`. Tokens: `tokens`: some are
    masked, a span is cut. See `kind_views`. `auto`: the first of the samples' kind. Raises InputError for one of
    another kind.
    """
    kind = preprocess.codec.spec.kind
    valid = _OF_KIND.get(kind, ())
    if wanted == "auto" and valid:
        wanted = cast(Augmentation, valid[0])
    if wanted == "fine_tuning" and kind != "image":
        return (lambda samples, stream: preprocess(samples),) * 2
    if wanted not in (*valid, "fine_tuning"):
        names = ", ".join(("auto", *valid)) if valid else "none"
        raise InputError(f"strategy.aug = {wanted!r}: the samples are of kind {kind!r}; valid: {names}.")
    if kind == "image":
        return (_image_view(wanted, sets, preprocess),) * 2
    return tuple(_encoded_view(change, preprocess) for change in _changes(wanted, preprocess, pool))  # type: ignore[return-value]


def _encoded_view(change: Callable[[Tensor, torch.Generator], Tensor], preprocess: Preprocess) -> View:
    return lambda samples, stream: change(preprocess(samples), stream)


def _changes(
    wanted: str, preprocess: Preprocess, pool: np.ndarray
) -> tuple[Callable[[Tensor, torch.Generator], Tensor], Callable[[Tensor, torch.Generator], Tensor]]:
    """Return how encoded samples are changed for the first and the second view."""
    if wanted == "tstcc":
        return kinds.weak_series, kinds.strong_series
    if wanted == "tstcc_code":
        return kinds.code_series, partial(kinds.strong_series, code=True)
    if wanted == "tokens":
        return kinds.dropped_tokens, kinds.cut_tokens
    groups = preprocess.codec.groups
    if wanted == "vime":
        return (lambda rows, stream: kinds.vime_view(rows, groups, kinds.VIME_RATE, stream),) * 2
    rows_of_node = preprocess(pool)
    return (lambda rows, stream: kinds.scarf_view(rows, rows_of_node, groups, kinds.SCARF_RATE, stream),) * 2


def _image_view(augmentation: str, sets: Sequence[str], preprocess: Preprocess) -> View:
    shape, largest = preprocess.codec.spec.shape, preprocess.codec.spec.largest or 1.0
    if augmentation == "official" and "svhn" not in sets:
        return lambda images, stream: view(images, preprocess, stream)
    from kornia import augmentation as kornia  # 64 images: 8.7 ms in one call; torchvision 24.2 ms, one image at a time

    size, colour = (shape[1], shape[2]), shape[0] == 3
    coloured = shape[0] in (1, 3)  # others have no colours

    def jitter(strength: float, hue: float, p: float) -> nn.Module:
        return kornia.ColorJitter(strength, strength, strength if colour else 0.0, hue if colour else 0.0, p=p)

    if augmentation == "official":
        pad = max(1, shape[1] // 8)
        steps = [kornia.RandomCrop(size, padding=pad), jitter(0.4, 0.4, 1.0), kornia.RandomRotation(15.0, p=1.0)]
        steps = steps if coloured else [steps[0], steps[2]]
    elif augmentation == "fine_tuning":
        crop = kornia.RandomResizedCrop(size, scale=(0.64, 1.0), ratio=(1.0, 1.0))
        steps = [crop, kornia.RandomHorizontalFlip(p=0.5)]
    else:
        crop = kornia.RandomResizedCrop(size, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3))
        grey = [kornia.RandomGrayscale(p=0.2)] if colour else []
        steps = [crop, kornia.RandomHorizontalFlip(p=0.5), *([jitter(0.8, 0.2, 0.8)] if coloured else []), *grey]
    augment = nn.Sequential(*steps)

    def make(images: np.ndarray, stream: torch.Generator) -> Tensor:
        own = torch.Generator()
        own.manual_seed(int(torch.randint(2**62, (1,), generator=stream)))
        with default_stream(own):  # kornia draws only from torch's default generators
            batch = torch.from_numpy(images).to(preprocess.device)
            pixels = batch.to(torch.float32, memory_format=torch.contiguous_format) / largest
            # the colour changes need three channels
            augmented: Tensor = augment(pixels.expand(-1, 3, -1, -1) if coloured else pixels)
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

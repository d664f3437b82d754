"""Makes training batches from raw samples: order, augmentation and encoding, on whole batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import batch_sizes
from ..data.codec import Codec
from ..data.encoder import Encoder
from ..data.samples import Samples

_VALUES = 2**20  # pixel values of the images that are prepared together


class Preprocess:
    """Converts raw samples to encoded batches on a device, images with or without augmentation."""

    def __init__(self, codec: Codec, augment: str, device: torch.device, wholes: Sequence[np.ndarray] = ()) -> None:
        """Take a codec. `wholes`: the inputs of whole sets, which a GPU keeps if it has the room."""
        self.codec, self.augment, self.device = codec, augment, device
        self._encoder = Encoder(codec, device)
        self._wholes = wholes

    def __call__(self, images: np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        """Return encoded samples; images are augmented if a generator is given."""
        return self._ready(torch.from_numpy(images).to(self.device), generator)

    def _ready(self, batch: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is not None and self.augment != "none":
            batch = crop_flip(batch, generator, reflect=self.reflects)
        return self.scaled(batch)

    @property
    def reflects(self) -> bool:
        """Return whether the border of shifted images is reflected; else it is black."""
        return self.augment == "crop_flip_reflect"

    def scaled(self, images: Tensor) -> Tensor:
        """Return raw samples on the device as encoded ones."""
        return self._encoder(images)

    def of(self, data: Samples, generator: torch.Generator | None = None) -> Tensor:
        """Return a batch of all these samples; encoded ones, such as virtual ones, are not changed."""
        if data.encoded:
            return torch.from_numpy(data.inputs).to(self.device).contiguous()
        return self(data.inputs, generator)

    def at(self, data: Samples, positions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a batch of the samples at these positions, as `of`; from the device if it has them."""
        kept = self.kept(data)
        if kept is None:
            return self.of(data.take(positions.numpy()), generator)
        whole, rows = kept
        return self._ready(whole[sent(rows[positions], self.device)], generator)

    def kept(self, data: Samples) -> tuple[Tensor, Tensor] | None:
        """Return the raw samples of a whole set on the device, and the positions of these samples in it, on the CPU.

        None if the device does not have them: a CPU never does.
        """
        if not self._on_device or data.encoded:
            return None
        whole = self._on_device.get(id(data.inputs if data.rows is None else data.rows.whole))
        if whole is None:
            return None
        return whole, torch.arange(len(data.labels)) if data.rows is None else torch.tensor(data.rows.positions)

    def kept_bytes(self) -> int:
        """Return how much memory of the device the whole sets have, or will have when they are first used."""
        total = sum(whole.nbytes for whole in self._wholes)
        return total if total <= self.room() else 0

    def room(self) -> int:
        """Return how much memory of the device the whole sets may have: a quarter of what is free; of a CPU nothing."""
        return torch.cuda.mem_get_info(self.device)[0] // 4 if self.device.type == "cuda" else 0

    @cached_property
    def _on_device(self) -> dict[int, Tensor]:
        if not self.kept_bytes():
            return {}
        # copies: of Ray's shared memory, which cannot be written, torch makes no tensor without a warning
        return {id(whole): torch.tensor(whole, device=self.device).contiguous() for whole in self._wholes}

    def targets(self, labels: np.ndarray) -> Tensor:
        """Return labels as a loss takes them, on the CPU: classes, int64, N; or several labels or targets, float32."""
        return torch.from_numpy(self.codec.targets(labels))

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise pixels of 0 to 1 in place, and return them."""
        return self._encoder.normalise(images)

    def pixels(self, images: Tensor) -> np.ndarray:
        """Return encoded samples, such as a generator's, as raw ones: the inverse; of images, in their range."""
        return self._encoder.decode(images)


def crop_flip(images: Tensor, generator: torch.Generator, *, reflect: bool = False) -> Tensor:
    """Return each image shifted by up to one eighth of its side (black border) and mirrored with probability 1/2.

    The usual augmentation for CIFAR (He et al., 2016: 4 pixels of 32). Images: uint8, B x C x H x W. `reflect`: the
    border is the reflected image (NIID-Bench's code).
    """
    pad = crop_pad(images.shape[2])
    return shift_mirror(bordered(images, pad, reflect), pad, *shift_draws(len(images), pad, generator))


def bordered(images: Tensor, pad: int, reflect: bool) -> Tensor:
    """Return images with a border of `pad` pixels, black or reflected. Of any dtype, B x C x H x W."""
    if not reflect:
        return F.pad(images, (pad, pad, pad, pad))
    rows, columns = (_reflected(side, pad, images.device) for side in images.shape[2:])
    return images[:, :, rows[:, None], columns]


def _reflected(side: int, pad: int, device: torch.device) -> Tensor:
    places = torch.arange(-pad, side + pad, device=device).abs()
    return side - 1 - (side - 1 - places).abs()


def crop_pad(height: int) -> int:
    """Return the border of `crop_flip` in pixels."""
    return max(1, height // 8)


def shift_draws(count: int, pad: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for each image a shift down and right, 2 x B, 0 to 2 `pad`, and whether it is mirrored, B."""
    shifts = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    return shifts, torch.rand(count, generator=generator) < 0.5


def shift_mirror(padded: Tensor, pad: int, shifts: Tensor, mirror: Tensor) -> Tensor:
    """Return a window of each padded image, `pad` pixels smaller on each side, shifted and mirrored as `shift_draws`
    says. Images: B x C x H x W.
    """
    count, height, width = len(padded), padded.shape[2] - 2 * pad, padded.shape[3] - 2 * pad
    shifts, mirror = shifts.to(padded.device), mirror.to(padded.device)
    rows = shifts[0, :, None] + torch.arange(height, device=padded.device)
    columns = shifts[1, :, None] + torch.arange(width, device=padded.device)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    index = torch.arange(count, device=padded.device)
    return padded[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def batches(
    data: Samples,
    targets: Tensor,
    size: int,
    preprocess: Preprocess,
    order: torch.Generator | None = None,
    augment: bool = True,
    most: int | None = None,
    chances: Tensor | None = None,
    *,
    drop_last: bool = False,
    positions: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, targets) batches, shuffled by `order`; with `augment` also augmented by it.

    `targets`: one row for each image (labels, logits, probabilities). `most`: the largest number of batches.
    `chances`, `positions`: see `train`. The last batch of an epoch follows `batch_sizes`. Several batches are prepared
    together, with about a million values.
    """
    rows = len(data.labels)
    for chosen, sizes in chunks(
        rows, size, data.inputs, order, most, chances, drop_last=drop_last, positions=positions
    ):
        images = preprocess.at(data, chosen, order if augment else None)
        yield from zip(images.split(sizes), targets[chosen].to(preprocess.device).split(sizes), strict=True)


def chunks(
    count: int,
    size: int,
    images: np.ndarray,
    order: torch.Generator | None,
    most: int | None = None,
    chances: Tensor | None = None,
    *,
    drop_last: bool = False,
    positions: Tensor | None = None,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield positions in the order of an epoch, as many as are prepared together, and the sizes of their batches.

    `images`: those that are prepared, which say how many fit. Other arguments as in `batches`.
    """
    if positions is not None:
        count = len(positions)
    elif order is None:
        positions = torch.arange(count)
    elif chances is None:
        positions = torch.randperm(count, generator=order)
    else:
        positions = torch.multinomial(chances, count, replacement=True, generator=order)
    sizes = batch_sizes(count, size, drop_last)[:most]
    together = max(1, _VALUES // (size * math.prod(images.shape[1:])))
    for first in range(0, len(sizes), together):
        these = sizes[first : first + together]
        yield positions[first * size : first * size + sum(these)], these


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; nothing waits for a copy to a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def shuffled(count: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Yield the positions of the batches of one epoch over `count` samples, shuffled by `order` (see `batch_sizes`)."""
    yield from torch.randperm(count, generator=order).split(batch_sizes(count, size))

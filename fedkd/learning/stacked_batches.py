"""The batches of clients that are trained in one step."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import Preprocess, bordered, crop_pad, sent, shift_mirror
from .plans import Plan
from .training import LocalTraining


class StepForm(NamedTuple):
    """What steps have in common: whether a batch is filled, and whether a client has finished."""

    filled: bool
    ended: bool


class StackedBatches:
    """The batches of all clients: their images on the device, and for each step which of them."""

    def __init__(self, trainings: list[LocalTraining], plans: list[Plan]) -> None:
        first = trainings[0]
        device = first.preprocess.device
        self.prepare = partial(_prepared, first.preprocess, first.data.encoded)
        self.images, found = _places(trainings, first.preprocess)
        target_starts, targets = _joined([local.targets for local in trainings])
        self.targets = torch.cat(targets).to(device)
        steps, widest = max(len(plan.sizes) for plan in plans), max((max(p.sizes) for p in plans if p.sizes), default=0)
        form = (steps, len(plans), widest)
        self.sizes = torch.zeros(form[:2], dtype=torch.int64)
        index, wanted = torch.zeros(form, dtype=torch.int64), torch.zeros(form, dtype=torch.int64)
        self.augmented = plans[0].shifts is not None
        shifts, mirror = torch.zeros((2, *form), dtype=torch.int64), torch.zeros(form, dtype=torch.bool)
        for client, plan in enumerate(plans):
            sizes = torch.tensor(plan.sizes, dtype=torch.int64)
            real = torch.arange(widest)[None] < sizes[:, None]
            self.sizes[: len(sizes), client] = sizes
            index[: len(sizes), client][real] = found[client][plan.positions]
            wanted[: len(sizes), client][real] = plan.positions + target_starts[client]
            if plan.shifts is not None and plan.mirror is not None:
                for way in (0, 1):
                    shifts[way, : len(sizes), client][real] = plan.shifts[way]
                mirror[: len(sizes), client][real] = plan.mirror
        self.index, self.wanted = sent(index, device), sent(wanted, device)
        if self.augmented:
            self.shifts, self.mirror = sent(shifts, device), sent(mirror, device)

    def of(self, step: int, count: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images, k x B x channels x H x W, targets, k x B, and which rows are real, or None if all are."""
        sizes = self.sizes[step, :count]
        widest = int(sizes.max())
        part = (step, slice(count), slice(widest))
        shifts, mirror = (self.shifts[:, *part], self.mirror[part]) if self.augmented else (None, None)
        ready = self.prepare(self.images, self.index[part], shifts, mirror)
        targets = self.targets[self.wanted[part]]
        if int(sizes.min()) == widest:
            return ready, targets, None
        real = torch.arange(widest)[None] < sizes[:, None]
        return ready, targets, sent(real, ready.device)

    def packed(self, width: int) -> tuple[Tensor, list[StepForm]]:
        """Return all steps as one tensor, and the form of each.

        The tensor: steps x 6 x K x `width`, int32: positions of images, of targets; shifts down, right; whether
        mirrored; and flags: 1 for a real row, 2 for a client that has not finished. Of others all rows are real.
        """
        live = self.sizes > 0
        real = (torch.arange(width) < self.sizes[:, :, None]) | ~live[:, :, None]
        flags = sent((real + 2 * live[:, :, None]).int(), self.index.device)
        none = torch.zeros_like(self.index)
        shifts, mirror = (self.shifts, self.mirror) if self.augmented else ((none, none), none)
        parts = [self.index, self.wanted, shifts[0], shifts[1], mirror]
        filling = (0, width - self.index.shape[2])
        plans = torch.stack([*(F.pad(part.int(), filling) for part in parts), flags], dim=1)
        filled, ended = (live & (self.sizes != width - 1)).any(1), (~live).any(1)
        return plans, [StepForm(*both) for both in zip(filled.tolist(), ended.tolist(), strict=True)]


def _prepared(
    preprocess: Preprocess,
    encoded: bool,
    images: Tensor,
    chosen: Tensor,
    shifts: Tensor | None,
    mirror: Tensor | None,
) -> Tensor:
    """Return the images at positions, k x B, as k batches; augmented by shifts, 2 x k x B, and mirror, k x B."""
    found = images[chosen.flatten()]
    if shifts is not None and mirror is not None:
        pad = crop_pad(found.shape[2])
        found = shift_mirror(bordered(found, pad, preprocess.reflects), pad, shifts.flatten(1), mirror.flatten())
    ready = found if encoded else preprocess.scaled(found)
    return ready.view(*chosen.shape, *ready.shape[1:])


def _places(trainings: list[LocalTraining], preprocess: Preprocess) -> tuple[Tensor, list[Tensor]]:
    """Return images on the device, a whole set or those of these clients, and where in it each client's own are."""
    kept = [preprocess.kept(local.data) for local in trainings]
    there = [one for one in kept if one is not None]
    if len(there) == len(kept) and len({id(whole) for whole, _ in there}) == 1:
        return there[0][0], [positions for _, positions in there]
    starts, parts = _joined([local.data.inputs for local in trainings])
    images = torch.cat([torch.from_numpy(part) for part in parts]).to(preprocess.device)
    return images, [
        start + torch.arange(len(local.data.labels)) for start, local in zip(starts, trainings, strict=True)
    ]


def _joined(parts: list[Any]) -> tuple[list[int], list[Any]]:
    """Return where each part begins in the concatenation of all different ones, and the different ones."""
    places: dict[int, int] = {}
    different: list[Any] = []
    length = 0
    for part in parts:
        if id(part) not in places:
            places[id(part)] = length
            different.append(part)
            length += len(part)
    return [places[id(part)] for part in parts], different

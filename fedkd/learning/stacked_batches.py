"""The batches of clients that are trained in one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import Preprocess, crop_pad, sent, shift_mirror
from .plans import Plan
from .training import LocalTraining


class StackedBatches:
    """The batches of all clients: their images on the device, and for each step which of them."""

    def __init__(self, trainings: list[LocalTraining], plans: list[Plan]) -> None:
        first = trainings[0]
        self.preprocess, self.normalised = first.preprocess, first.data.normalised
        device = self.preprocess.device
        self.images, found = _places(trainings, self.preprocess)
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
        chosen = self.index[step, :count, :widest].flatten()
        images = self.images[chosen]
        if self.augmented:
            pad = crop_pad(images.shape[2])
            shifts = self.shifts[:, step, :count, :widest].flatten(1)
            mirror = self.mirror[step, :count, :widest].flatten()
            images = shift_mirror(F.pad(images, (pad, pad, pad, pad)), pad, shifts, mirror)
        ready = images if self.normalised else self.preprocess.scaled(images)
        ready = ready.view(count, widest, *ready.shape[1:])
        targets = self.targets[self.wanted[step, :count, :widest]]
        if int(sizes.min()) == widest:
            return ready, targets, None
        real = torch.arange(widest)[None] < sizes[:, None]
        return ready, targets, sent(real, ready.device)


def _places(trainings: list[LocalTraining], preprocess: Preprocess) -> tuple[Tensor, list[Tensor]]:
    """Return images on the device, a whole set or those of these clients, and where in it each client's own are."""
    kept = [preprocess.kept(local.data) for local in trainings]
    there = [one for one in kept if one is not None]
    if len(there) == len(kept) and len({id(whole) for whole, _ in there}) == 1:
        return there[0][0], [positions for _, positions in there]
    starts, parts = _joined([local.data.images for local in trainings])
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

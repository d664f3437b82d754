"""The plan of a local training: its batches and their augmentation, drawn before it, as `train` draws them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .batches import chunks, crop_pad, shift_draws
from .training import LocalTraining, refuse_no_batch


class Plan(NamedTuple):
    """One client's steps. `sizes`: of their batches. `counted`: how many steps, the last ones, its loss is the mean of.

    For the rows of all batches in their order, R: `positions` of images, R; `shifts`, 2 x R, and `mirror`, R, if they
    are augmented.
    """

    sizes: list[int]
    counted: int
    positions: Tensor
    shifts: Tensor | None
    mirror: Tensor | None


def plan_of(local: LocalTraining) -> Plan:
    """Return the plan of a local training. Its stream makes the same draws, in the same order, as in `train`.

    Raises ValueError like `train`.
    """
    data, count = local.data, len(local.data.labels)
    refuse_no_batch(local.steps, count, local.batch_size, local.drop_last)
    augmented = local.augment and not data.encoded and local.preprocess.augment != "none"
    sizes: list[int] = []
    positions: list[Tensor] = []
    draws: list[tuple[Tensor, Tensor]] = []
    epochs, counted = 0, 0
    while epochs < local.epochs if local.steps is None else len(sizes) < local.steps:
        before = len(sizes)
        most = None if local.steps is None else local.steps - before
        for chosen, these in chunks(
            count, local.batch_size, data.inputs, local.order, most, local.chances,
            drop_last=local.drop_last, positions=local.positions,
        ):  # fmt: skip
            if augmented:
                draws.append(shift_draws(len(chosen), crop_pad(data.inputs.shape[2]), local.order))
            sizes += these
            positions.append(chosen)
        epochs += 1
        counted = len(sizes) - (before if local.steps is None else 0)
    every = torch.cat(positions) if positions else torch.empty(0, dtype=torch.int64)
    if not draws:
        return Plan(sizes, counted, every, None, None)
    shifts, mirror = zip(*draws, strict=True)
    return Plan(sizes, counted, every, torch.cat(shifts, dim=1), torch.cat(mirror))

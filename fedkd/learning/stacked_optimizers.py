"""Optimisers of stacked training: one row for each client, each with its own learning rate and number of steps.

The arithmetic is that of torch's optimisers (`SgdSteps`, Adam, AdamW) for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..config import Adam, AnyOptimizer, ScheduleConfig, Sgd, TorchOptimizer

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


class StackedOptimizer(Protocol):
    """Changes the first rows of K x W parameters by their gradients."""

    def tensors(self) -> list[Tensor]:
        """Return its state, each with a row for each client."""

    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """Change the parameters of the first clients, k x W, in place by their gradients, k x W."""


def make_stacked(settings: Sequence[AnyOptimizer], like: Tensor, counts_on_device: bool = False) -> StackedOptimizer:
    """Return a new optimiser for K clients. Their settings are equal but for the rate; `like`: K x W parameters.

    `counts_on_device`: each client's number of steps is in a tensor. So a step can be undone for some clients only, and
    a recorded step counts.
    """
    first = settings[0]
    assert not isinstance(first, TorchOptimizer), "why_own_steps says so"
    rates = torch.tensor([one.lr for one in settings], dtype=torch.float64)
    return (
        StackedSgd(first, rates, like) if isinstance(first, Sgd) else StackedAdam(first, rates, like, counts_on_device)
    )


def why_own_steps(optimizer: AnyOptimizer, schedule: ScheduleConfig | None) -> str | None:
    """Return why the steps of an optimiser cannot be taken for several clients at once, or None."""
    if isinstance(optimizer, TorchOptimizer):
        return f"its optimiser, {optimizer.name} with these options, is torch's own"
    return None if schedule is None else "its learning rate changes within the round"


class StackedSgd:
    """SGD with momentum and weight decay, which comes before momentum."""

    def __init__(self, settings: Sgd, rates: Tensor, like: Tensor) -> None:
        self._settings = settings
        self._rates = rates.to(like)[:, None]
        self._velocity = torch.zeros_like(like) if settings.momentum else None

    def tensors(self) -> list[Tensor]:
        """Return rates and velocities."""
        return [self._rates] if self._velocity is None else [self._rates, self._velocity]

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """Change the first rows by their gradients."""
        count, direction = len(rows), gradients
        if self._settings.weight_decay:
            direction = torch.add(direction, rows, alpha=self._settings.weight_decay)
        if self._velocity is not None:
            direction = self._velocity[:count].mul_(self._settings.momentum).add_(direction)
        rows.addcmul_(direction, self._rates[:count], value=-1)


class StackedAdam:
    """Adam and AdamW. A client is in each step before it has finished, so one number of steps serves all.

    On the device the number of steps is K x 1, as are the rates.
    """

    def __init__(self, settings: Adam, rates: Tensor, like: Tensor, counts_on_device: bool) -> None:
        self._settings = settings
        self._rates = rates[:, None].to(like.device) if counts_on_device else rates[:, None]
        self._first, self._second = torch.zeros_like(like), torch.zeros_like(like)
        self._steps: int | Tensor = torch.zeros_like(self._rates) if counts_on_device else 0

    def tensors(self) -> list[Tensor]:
        """Return rates, moments and numbers of steps."""
        steps = [self._steps] if isinstance(self._steps, Tensor) else []
        return [self._rates, self._first, self._second, *steps]

    @torch.no_grad()
    def step(self, rows: Tensor, gradients: Tensor) -> None:
        """Change the first rows by their gradients."""
        count, decay = len(rows), self._settings.weight_decay
        self._steps += 1
        steps = self._steps[:count] if isinstance(self._steps, Tensor) else self._steps
        rates = self._rates[:count]
        if decay and self._settings.name == "adamw":
            rows.mul_((1 - rates * decay).to(rows))
        elif decay:
            gradients = torch.add(gradients, rows, alpha=decay)
        first, second = self._first[:count], self._second[:count]
        first.lerp_(gradients, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradients, gradients, value=1 - _BETA2)
        sizes = rates / (1 - _BETA1**steps)
        scale = (1 - _BETA2**steps) ** 0.5
        scale = scale.to(rows) if isinstance(scale, Tensor) else scale
        rows.sub_(first / (second.sqrt().div_(scale).add_(_EPSILON)) * sizes.to(rows))

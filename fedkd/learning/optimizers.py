"""Optimisers of local training."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import Adam, Sgd


class Optimizer(Protocol):
    """The interface of an optimiser that training needs: torch's, or ours."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


class SgdSteps:
    """The same arithmetic as torch.optim.SGD, but faster.

    torch's class imports torch's compiler, and torch's functional form sorts the tensors again in each step.
    """

    def __init__(self, groups: list[list[nn.Parameter]], settings: Sgd) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": group, "lr": settings.lr} for group in groups]
        self._settings = settings
        self._momentum: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters that have a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._move(moved, [p.grad for p in moved], group["lr"])

    def _move(self, moved: list[Any], directions: list[Any], lr: float) -> None:
        if self._settings.weight_decay:
            directions = list(torch._foreach_add(directions, moved, alpha=self._settings.weight_decay))
        if self._settings.momentum:
            before = [(self._momentum[p], d) for p, d in zip(moved, directions, strict=True) if p in self._momentum]
            if before:
                velocities, theirs = map(list, zip(*before, strict=True))
                torch._foreach_mul_(velocities, self._settings.momentum)
                torch._foreach_add_(velocities, theirs)
            self._momentum |= {p: d.clone() for p, d in zip(moved, directions, strict=True) if p not in self._momentum}
            directions = [self._momentum[p] for p in moved]
        torch._foreach_add_(moved, directions, alpha=-lr)


def make_optimizer(model: nn.Module, settings: Sgd | Adam, *peers: nn.Module) -> Optimizer:
    """Return a new optimiser for the trainable parameters of the model and of its peers, one group for each."""
    groups = [[p for p in module.parameters() if p.requires_grad] for module in (model, *peers)]
    if isinstance(settings, Sgd):
        return SgdSteps(groups, settings)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind([{"params": group} for group in groups], lr=settings.lr, weight_decay=settings.weight_decay)

"""Optimisers of local training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import Adam, AnyOptimizer, ScheduleConfig, Sgd, TorchOptimizer
from ..errors import InputError, described, unknown


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


def make_optimizer(model: nn.Module, settings: AnyOptimizer, *peers: nn.Module) -> Optimizer:
    """Return a new optimiser for the trainable parameters of the model and of its peers, one group for each.

    Raises InputError for a name, options or parameters that torch.optim does not take.
    """
    groups = [[p for p in module.parameters() if p.requires_grad] for module in (model, *peers)]
    if isinstance(settings, Sgd):
        return SgdSteps(groups, settings)
    parts = [{"params": group} for group in groups]
    if isinstance(settings, Adam):
        kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        return kind(parts, lr=settings.lr, weight_decay=settings.weight_decay)
    return _of_torch(parts, settings)


def _of_torch(parts: list[dict[str, Any]], settings: TorchOptimizer) -> Optimizer:
    found = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind not in _NOT_HERE
    }
    if settings.name not in found:
        raise unknown("train.optimizer.name", settings.name, found)
    kind: Any = found[settings.name]
    valid = inspect.signature(kind).parameters.keys() - {"params"}
    for name in settings.options:
        if name not in valid:
            raise unknown(f"train.optimizer of {settings.name}", name, valid)
    try:
        made: Optimizer = kind(parts, lr=settings.lr, **settings.options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"train.optimizer: {settings.name} refuses it: {described(error)}.") from error
    return made


_NOT_HERE = {
    torch.optim.Optimizer,
    torch.optim.LBFGS,  # it computes the loss several times in a step
    torch.optim.SparseAdam,  # no gradient here is sparse
}


class _Scheduled:
    """An optimiser whose learning rate follows a schedule of steps."""

    def __init__(self, optimizer: Optimizer, schedule: ScheduleConfig, total: int) -> None:
        self.param_groups = optimizer.param_groups
        self._optimizer, self._schedule, self._total = optimizer, schedule, total
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._done = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad()

    def step(self) -> None:
        """Take the optimiser's step with the learning rate of its number."""
        share = self._schedule.share(self._done, self._total)
        for group, rate in zip(self.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._optimizer.step()
        self._done += 1


def scheduled(optimizer: Optimizer, schedule: ScheduleConfig | None, total: int) -> Optimizer:
    """Return an optimiser with the learning rates of a schedule of `total` steps; without one, the same optimiser."""
    return optimizer if schedule is None else _Scheduled(optimizer, schedule, total)


class _Corrected:
    """An optimiser after whose steps each parameter moves by -lr times its correction."""

    def __init__(self, optimizer: Optimizer, corrections: Mapping[nn.Parameter, Tensor]) -> None:
        self.param_groups = optimizer.param_groups
        self._optimizer, self._corrections = optimizer, corrections

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Take the optimiser's step, then the corrections'."""
        self._optimizer.step()
        for group in self.param_groups:
            parameters = group["params"]
            torch._foreach_add_(parameters, [self._corrections[p] for p in parameters], alpha=-group["lr"])


def corrected_steps(optimizer: Optimizer, corrections: Mapping[nn.Parameter, Tensor]) -> Optimizer:
    """Return an optimiser that also moves each parameter by -lr times its correction in each step.

    The corrections have no part in momentum, weight decay or the clipping of gradients.
    """
    return _Corrected(optimizer, corrections)

"""Networks of many clients whose whole loss runs under `vmap`: their tensors are stacked, one row for each client.

No row of a batch is filled, so a loss may compare the images of a batch. Clients are in the order of their number of
steps, the most first; those that have finished are no longer part of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..config import AnyOptimizer
from .stacked_models import Stack, stacked
from .stacked_optimizers import make_stacked
from .stacked_parameters import clipped, named_rows

_MODULE = "module."
Rows = slice | Tensor  # which clients: the first ones, or their positions


class _Call(nn.Module):
    """Calls a function of a module, whose tensors `functional_call` replaces; returns its result and the buffers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Any, *arguments: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the result, and the module's buffers after it."""
        return function(self.module, *arguments), dict(self.module.named_buffers())


class StackedNetworks:
    """The networks of K clients: of each a module, which keeps its modes, and what its loss keeps between steps."""

    def __init__(
        self,
        module: nn.Module,
        states: Sequence[Mapping[str, Tensor]],
        used: set[str],
        kept: Sequence[Mapping[str, Tensor]],
        optimizers: Sequence[AnyOptimizer],
        clip: float | None,
    ) -> None:
        """Stack `states`, all on one device: the modules' parameters and buffers. `used`: the trained parameters."""
        self._call, self._clip = _Call(copy.deepcopy(module)), clip
        self._shapes = {name: tensor.shape for name, tensor in states[0].items() if name in used}
        self.flat = torch.stack([torch.cat([state[name].flatten() for name in self._shapes]) for state in states])
        self.rest = {name: stacked([s[name] for s in states]) for name in states[0] if name not in used}
        self.kept = {name: stacked([one[name].to(self.flat.device) for one in kept]) for name in kept[0]}
        self._optimizer = make_stacked(optimizers, self.flat)

    def gradients(self, rows: Rows, loss: Callable[..., Tensor], batch: Stack) -> tuple[Tensor, Tensor]:
        """Return the losses of some clients, k, and their gradients, k x W. Buffers, and what a loss keeps, change.

        `loss(module, batch, kept)`: of one client. `batch`: tensors of k x ...
        """
        leaf = self.flat[rows].detach().requires_grad_()
        rest = {name: tensor[rows] for name, tensor in self.rest.items()}

        def one(tensors: Stack, batch: Stack, kept: Stack) -> tuple[Tensor, Stack, Stack]:
            changed = dict(kept)
            value, buffers = self._called(tensors, loss, batch, changed)
            return value, buffers, changed

        kept = {name: tensor[rows] for name, tensor in self.kept.items()}
        values, buffers, changed = torch.vmap(one)(named_rows(leaf, self._shapes) | rest, dict(batch), kept)
        (found,) = torch.autograd.grad(values.sum(), leaf)
        for mine, new in ((self.rest, buffers), (self.kept, changed)):
            for name, tensor in new.items():
                mine[name][rows] = tensor.detach()
        return values.detach(), found

    def step(self, gradients: Tensor) -> None:
        """Change the trained parameters of the first clients by their gradients, k x W."""
        self._optimizer.step(self.flat[: len(gradients)], clipped(gradients, self._clip))

    def do(self, count: int, function: Callable[[Any], None]) -> None:
        """Call a function of the module of each of the first clients; it may change tensors in place."""

        def one(tensors: Stack) -> Tensor:
            self._called(tensors, function)
            return next(iter(tensors.values()))

        rest = {name: tensor[:count] for name, tensor in self.rest.items()}
        torch.vmap(one)(named_rows(self.flat[:count], self._shapes) | rest)

    def state(self, client: int) -> dict[str, Tensor]:
        """Return the parameters and buffers of a client's module."""
        rows = named_rows(self.flat[client : client + 1], self._shapes)
        return {name: row[0] for name, row in rows.items()} | {name: rest[client] for name, rest in self.rest.items()}

    def _called(self, tensors: Stack, function: Callable[..., Any], *arguments: Any) -> Any:
        named = {f"{_MODULE}{name}": tensor for name, tensor in tensors.items()}
        return functional_call(self._call, named, (function, *arguments), strict=True)


def used_parameters(module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> set[str]:
    """Return the names of the trainable parameters that a loss depends on; others get no weight decay either."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss(module), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}

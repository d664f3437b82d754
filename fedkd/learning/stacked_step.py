"""One step of many clients: their tensors, their losses, and what the step changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from .loss_scale import LossScale
from .stacked_models import Path, Stack, StackedModel, StackedOutputs, stacked
from .stacked_optimizers import make_stacked
from .stacked_parameters import clipped, named_rows
from .training import LocalTraining, ModelLoss, Outputs, full

_CLASSIFIER = "classifier."


def loss_of(local: LocalTraining) -> ModelLoss:
    """Return the loss of a training as a ModelLoss; the cross-entropy is one."""
    return local.loss if isinstance(local.loss, ModelLoss) else ModelLoss()


def keep_where(kept: Tensor, tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Put back the rows of tensors for clients that are not `kept`, k, in place."""
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(kept.view(-1, *[1] * (tensor.dim() - 1)), tensor, old))


class StackedStep:
    """The tensors of K clients, a row for each, and the step that changes them.

    `flat`: the trained parameters, K x W; `rest`: other parameters, and buffers. `own` and `frozen`: of the losses.
    """

    def __init__(
        self,
        trainings: Sequence[LocalTraining],
        starts: Sequence[Mapping[str, Tensor]],
        used: frozenset[str],
        path: Path,
        counts_on_device: bool = False,
    ) -> None:
        """Stack what each client begins with. `used`: the parameters that are trained. Others as `make_stacked`."""
        first = trainings[0]
        self.settings, self.loss, self.path = first, loss_of(first), path
        self.model, self.device = first.model, first.preprocess.device
        self._shapes = {name: p.shape for name, p in self.model.named_parameters() if name in used}
        rows = [torch.cat([start[name].to(self.device).flatten() for name in self._shapes]) for start in starts]
        self.flat = torch.stack(rows)
        rest = [name for name in starts[0] if name not in self._shapes]
        self.rest = {name: stacked([start[name].to(self.device) for start in starts]) for name in rest}
        self.losses = [loss_of(local) for local in trainings]
        self.own = {n: stacked([one.own[n].to(self.device) for one in self.losses]) for n in self.loss.own}
        self.frozen = {
            name: _stacked_states([one.frozen[name] for one in self.losses], self.device) for name in self.loss.frozen
        }
        self.scaled = LossScale(len(rows), self.device) if first.half == torch.float16 else None
        counts_on_device |= self.scaled is not None
        self.optimizer = make_stacked([local.optimizer for local in trainings], self.flat, counts_on_device)
        self.compute = self.values

    def take(self, images: Tensor, targets: Tensor, rows: Tensor | None, drawn: Stack) -> Tensor:
        """Take a step of the first k clients on a batch; return their losses, k.

        `images`: k x B x channels x H x W; `rows`: which are real, k x B, or None if all are; `drawn`: by the losses.
        """
        count = len(images)
        leaf = self.flat[:count].detach().requires_grad_()
        values = self.compute(leaf, images, targets, rows, drawn)
        if self.scaled is None:
            (gradients,) = torch.autograd.grad(values.sum(), leaf)
            self._move(gradients)
        else:
            factors = self.scaled.scale[:count].clone()
            (gradients,) = torch.autograd.grad((values * factors).sum(), leaf)
            finite = gradients.isfinite().all(1)
            self.scaled.update(finite)
            state = [tensor[:count] for tensor in (self.flat, *self.optimizer.tensors())]
            before = [tensor.clone() for tensor in state]
            self._move(gradients / factors[:, None])
            keep_where(finite, state, before)
        return values.detach()

    def _move(self, gradients: Tensor) -> None:
        """Change the parameters of the first k clients by their gradients, k x W."""
        self.optimizer.step(self.flat[: len(gradients)], clipped(gradients, self.settings.clip))

    def values(self, leaf: Tensor, images: Tensor, targets: Tensor, rows: Tensor | None, drawn: Stack) -> Tensor:
        """Return the loss of each of the first k clients, of their trained parameters, k x W."""
        count = len(leaf)
        tensors = named_rows(leaf, self._shapes) | {name: tensor[:count] for name, tensor in self.rest.items()}
        own = {name: tensor[:count] for name, tensor in self.own.items()} | dict(drawn)
        half = self.settings.half
        with torch.autocast(self.device.type, half, enabled=half is not None):
            with torch.no_grad():
                frozen = {
                    name: self._outputs({n: t[:count] for n, t in state.items()}, images, None, training=False)
                    for name, state in self.frozen.items()
                }
            outputs = self._outputs(tensors, images, rows, training=True)
        return self._losses(outputs, targets, own, frozen, tensors, rows)

    def tensors(self) -> list[Tensor]:
        """Return all that a training begins with."""
        frozen = [tensor for state in self.frozen.values() for tensor in state.values()]
        return [self.flat, *self.rest.values(), *self.own.values(), *frozen, *self._state()]

    def changing(self) -> list[Tensor]:
        """Return what a step may change, each with a row for each client."""
        buffers = [self.rest[name] for name, _ in self.model.named_buffers() if name in self.rest]
        return [self.flat, *buffers, *self._state()]

    def _state(self) -> list[Tensor]:
        return [*self.optimizer.tensors(), *(self.scaled.tensors() if self.scaled is not None else [])]

    def compiled(self, backend: str) -> None:
        """Compute the losses by `torch.compile` from now on, with their gradient. It compiles when they are needed."""
        assert self._stack  # made here, and not while it compiles
        self.compute = torch.compile(self.values, backend=backend, dynamic=False, fullgraph=True)

    def copied(self) -> StackedStep:
        """Return a step with parameters, buffers and an optimiser of its own, of the same values."""
        other = copy.copy(self)
        other.compute, other.losses = other.values, []
        other.flat, other.rest = self.flat.clone(), {name: tensor.clone() for name, tensor in self.rest.items()}
        other.optimizer, other.scaled = copy.deepcopy(self.optimizer), copy.deepcopy(self.scaled)
        return other

    def weights(self) -> list[dict[str, Tensor]]:
        """Return each client's parameters and buffers by name."""
        tensors = named_rows(self.flat, self._shapes) | self.rest
        return [{name: tensor[client] for name, tensor in tensors.items()} for client in range(len(self.flat))]

    @cached_property
    def _stack(self) -> StackedModel:
        return StackedModel(self.model, self.path)

    def _outputs(self, tensors: Stack, images: Tensor, rows: Tensor | None, *, training: bool) -> StackedOutputs:
        features = self.loss.features
        found = self._stack.outputs(tensors, images, rows=rows, training=training, features=features)
        return {name: full(tensor) for name, tensor in found.items()}

    def _losses(
        self,
        outputs: StackedOutputs,
        targets: Tensor,
        own: Stack,
        frozen: Mapping[str, StackedOutputs],
        tensors: Stack,
        rows: Tensor | None,
    ) -> Tensor:
        """Return the loss of each client, k."""
        classifier, loss = cast(nn.Module, self.model.classifier), self.loss
        names = [name for name, _ in self.model.named_parameters()]

        def one(
            outputs: StackedOutputs,
            targets: Tensor,
            own: Stack,
            frozen: Mapping[str, StackedOutputs],
            tensors: Stack,
            real: Stack,
        ) -> Tensor:
            head = {n.removeprefix(_CLASSIFIER): t for n, t in tensors.items() if n.startswith(_CLASSIFIER)}

            def classify(features: Tensor) -> Tensor:
                return cast(Tensor, functional_call(classifier, head, (features,), strict=True))

            of_rows = {name: own[name] for name in loss.rows}

            def of_outputs(
                outputs: StackedOutputs, targets: Tensor, frozen: Mapping[str, StackedOutputs], of_rows: Stack
            ) -> Tensor:
                others = {name: _read(other, classify) for name, other in frozen.items()}
                return loss.of_outputs(_read(outputs, classify), targets, {**own, **of_rows}, others)

            batch = (outputs, targets, frozen, of_rows)
            if real:
                each = torch.vmap(of_outputs)(*tree_map(lambda t: t[:, None], batch))
                value = torch.where(real["rows"], each, 0.0).sum() / real["rows"].sum()
            else:
                value = of_outputs(*batch)
            if loss.of_parameters is not None:
                value = value + loss.of_parameters({name: tensors[name] for name in names}, own)
            return value

        losses: Callable[..., Tensor] = torch.vmap(one)
        real = {} if rows is None else {"rows": rows}
        return losses(outputs, targets, dict(own), dict(frozen), dict(tensors), real)


def _read(outputs: StackedOutputs, classify: Callable[[Tensor], Tensor]) -> Outputs:
    logits = outputs["logits"]
    return Outputs(logits, outputs.get("features", logits), classify)


def _stacked_states(models: list[nn.Module], device: torch.device) -> dict[str, Tensor]:
    states = [model.state_dict() for model in models]
    return {name: stacked([state[name].to(device) for state in states]) for name in states[0]}

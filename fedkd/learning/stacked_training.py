"""Local training of many clients in one step: their parameters are the rows of one tensor.

Each client has its own images, batches, learning rate, loss tensors and statistics of batch norm. Its result is that of
training alone, up to rounding. Clients are sorted by their number of steps; those that have finished are no longer
part of a step. A batch that is smaller than others of its step is filled with rows that do not count.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from .plans import Plan, plan_of
from .stacked_batches import StackedBatches
from .stacked_models import (
    Path,
    Stack,
    StackedModel,
    StackedOutputs,
    has_norm,
    refusing_loops,
    stacked,
    why_not_stacked,
)
from .stacked_optimizers import make_stacked
from .training import LocalTraining, ModelLoss, Outputs, cross_entropy, full

_CLASSIFIER = "classifier."


class Trained(NamedTuple):
    """A client's mean loss, and its model's parameters and buffers by name, on the device."""

    loss: float
    weights: dict[str, Tensor]


def why_alone(local: LocalTraining) -> str | None:
    """Return why a client can only be trained alone, or None."""
    if local.loss is not cross_entropy and not isinstance(local.loss, ModelLoss):
        return "its loss is not a ModelLoss"
    if local.beside is not None:
        return "its optimiser trains a second module"
    if not torch.is_grad_enabled():
        return "it trains where gradients are off"
    if len(local.data.labels) < (2 if has_norm(local.model) else 1):
        return "it has too few images"
    if len(local.targets) != len(local.data.labels):
        return "it has not one target for each image"
    return why_not_stacked(local.model)


def key_of(local: LocalTraining) -> Hashable:
    """Return what clients must have in common to be trained in one step."""
    loss = _loss_of(local)
    return (
        id(local.model), tuple(p.requires_grad for p in local.model.parameters()),
        _identity(loss.of_outputs), _identity(loss.of_parameters), loss.features,
        _forms(loss.own), tuple(sorted(loss.frozen)), loss.draw is None, loss.rows,
        local.optimizer.model_copy(update={"lr": 1.0}), local.clip, local.batch_size, local.steps is None,
        local.bf16, local.augment, local.data.normalised, local.data.images.shape[1:],
        local.targets.shape[1:], local.targets.dtype,
    )  # fmt: skip


def _loss_of(local: LocalTraining) -> ModelLoss:
    return local.loss if isinstance(local.loss, ModelLoss) else ModelLoss()


def _identity(value: Any) -> Hashable:
    if isinstance(value, partial):
        keywords = tuple((name, _identity(one)) for name, one in sorted(value.keywords.items()))
        return _identity(value.func), tuple(map(_identity, value.args)), keywords
    if isinstance(value, nn.Module):
        return repr(value), tuple(value.state_dict()), _digest(value.state_dict())
    return cast(Hashable, value)


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b()
    for tensor in tensors.values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _forms(tensors: Mapping[str, Tensor]) -> Hashable:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(tensors.items()))


def train_stacked(
    trainings: Sequence[LocalTraining], starts: Sequence[Mapping[str, Tensor]], path: Path
) -> list[Trained]:
    """Train clients with one `key_of` in common; return what each has learned, in their order.

    `starts`: the parameters and buffers that each begins with. Raises NotStacked if a loss or model cannot be computed
    for many clients, and OutOfMemoryError. After an error nothing is changed, and the streams are where they were.
    """
    streams = [one for local in trainings for one in (local.order, _loss_of(local).stream) if one is not None]
    states = [stream.get_state() for stream in streams]
    plans = [plan_of(local) for local in trainings]
    order = sorted(range(len(plans)), key=lambda i: -len(plans[i].sizes))
    try:
        work = _Stacked([trainings[i] for i in order], [plans[i] for i in order], [starts[i] for i in order], path)
        found = work.run()
    except BaseException:
        for stream, state in zip(streams, states, strict=True):
            stream.set_state(state)
        raise
    return [found[order.index(i)] for i in range(len(order))]


class _Stacked:
    """One stacked training. Clients are in the order of their number of steps, the most first."""

    def __init__(
        self, trainings: list[LocalTraining], plans: list[Plan], starts: list[Mapping[str, Tensor]], path: Path
    ) -> None:
        first = trainings[0]
        self.trainings, self.plans, self.loss = trainings, plans, _loss_of(first)
        self.model, self.preprocess, self.device = first.model, first.preprocess, first.preprocess.device
        self.used = _used_parameters(first, starts[0])
        shapes = {name: p.shape for name, p in self.model.named_parameters() if name in self.used}
        self.shapes, self.sizes = shapes, [shape.numel() for shape in shapes.values()]
        rows = [torch.cat([start[name].to(self.device).flatten() for name in shapes]) for start in starts]
        self.flat = torch.stack(rows)
        rest = [name for name in starts[0] if name not in shapes]
        self.rest = {name: stacked([start[name].to(self.device) for start in starts]) for name in rest}
        losses = [_loss_of(local) for local in trainings]
        self.losses = losses
        self.own = {n: stacked([one.own[n].to(self.device) for one in losses]) for n in self.loss.own}
        self.frozen = {
            name: _stacked_states([one.frozen[name] for one in losses], self.device) for name in self.loss.frozen
        }
        self.optimizer = make_stacked([local.optimizer for local in trainings], self.flat)
        self.stack = StackedModel(self.model, path)
        self.batches = StackedBatches(trainings, plans)

    def run(self) -> list[Trained]:
        """Take all steps."""
        values: list[Tensor] = []
        steps = [len(plan.sizes) for plan in self.plans]
        for step in range(max(steps)):
            count = sum(1 for mine in steps if mine > step)
            with refusing_loops() if step == 0 else nullcontext():
                values.append(F.pad(self._step(step, count), (0, len(steps) - count)))
        every = torch.stack(values, dim=1).double().cpu() if values else torch.zeros(len(steps), 0, dtype=torch.float64)
        return [
            Trained(float(every[i, mine - plan.counted : mine].mean()) if mine else 0.0, self._weights(i))
            for i, (plan, mine) in enumerate(zip(self.plans, steps, strict=True))
        ]

    def _step(self, step: int, count: int) -> Tensor:
        """Take a step of the first clients; return their losses, k."""
        images, targets, rows = self.batches.of(step, count)
        leaf = self.flat[:count].detach().requires_grad_()
        views = leaf.split(self.sizes, dim=1)
        trained = {n: v.view(count, *s) for (n, s), v in zip(self.shapes.items(), views, strict=True)}
        rest = {name: tensor[:count] for name, tensor in self.rest.items()}
        own = {name: tensor[:count] for name, tensor in self.own.items()} | self._drawn(step, targets)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.trainings[0].bf16):
            with torch.no_grad():
                frozen = {
                    name: self._outputs(
                        {n: tensor[:count] for n, tensor in state.items()}, images, None, training=False
                    )
                    for name, state in self.frozen.items()
                }
            outputs = self._outputs(trained | rest, images, rows, training=True)
        values = self._losses(outputs, targets, own, frozen, trained | rest, rows)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
        if (clip := self.trainings[0].clip) is not None:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients = gradients * torch.clamp(clip / (norms + 1e-6), max=1.0)
        self.optimizer.step(self.flat[:count], gradients)
        return values.detach()

    def _outputs(self, tensors: Stack, images: Tensor, rows: Tensor | None, *, training: bool) -> StackedOutputs:
        features = self.loss.features
        found = self.stack.outputs(tensors, images, rows=rows, training=training, features=features)
        return {name: full(tensor) for name, tensor in found.items()}

    def _drawn(self, step: int, targets: Tensor) -> dict[str, Tensor]:
        """Return what the losses draw for this batch, with rows of zeros where a batch is filled."""
        found: dict[str, list[Tensor]] = {}
        for loss, wanted, size in zip(self.losses, targets, self.batches.sizes[step].tolist(), strict=False):
            for name, tensor in loss.drawn(wanted[:size]).items():
                if name in self.loss.rows:
                    filled = tensor.new_zeros(len(wanted), *tensor.shape[1:])
                    filled[:size] = tensor
                    tensor = filled
                found.setdefault(name, []).append(tensor)
        return {name: torch.stack(tensors).to(self.device) for name, tensors in found.items()}

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

    def _weights(self, client: int) -> dict[str, Tensor]:
        parts = self.flat[client].split(self.sizes)
        trained = {n: part.view(s) for (n, s), part in zip(self.shapes.items(), parts, strict=True)}
        return trained | {name: tensor[client] for name, tensor in self.rest.items()}


def _read(outputs: StackedOutputs, classify: Callable[[Tensor], Tensor]) -> Outputs:
    logits = outputs["logits"]
    return Outputs(logits, outputs.get("features", logits), classify)


def _stacked_states(models: list[nn.Module], device: torch.device) -> dict[str, Tensor]:
    states = [model.state_dict() for model in models]
    return {name: stacked([state[name].to(device) for state in states]) for name in states[0]}


def _used_parameters(local: LocalTraining, start: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the trainable parameters that the loss depends on; others get no weight decay either."""
    model = copy.deepcopy(local.model).train()
    model.load_state_dict(dict(start))
    few = local.data.take(torch.arange(min(2, len(local.data.labels))).numpy())
    targets = local.targets[: len(few.labels)].to(local.preprocess.device)
    loss = _loss_of(local)
    if loss.stream is not None:  # the probe draws from a copy
        loss = replace(loss, stream=torch.Generator().set_state(loss.stream.get_state()))
    value = loss(model, local.preprocess.of(few), targets)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}

"""Local training of many clients in one step: their parameters are the rows of one tensor.

Each client has its own images, batches, learning rate, loss tensors and statistics of batch norm. Its result is that of
training alone, up to rounding. Clients are sorted by their number of steps; those that have finished are no longer
part of a step. A batch that is smaller than others of its step is filled with rows that do not count.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .plans import Plan, plan_of
from .stacked_batches import StackedBatches
from .stacked_graphs import StepGraphs
from .stacked_models import Path, has_norm, refusing_loops, why_not_stacked
from .stacked_optimizers import why_own_steps
from .stacked_step import StackedStep, loss_of
from .training import LocalTraining, ModelLoss, cross_entropy


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
    if local.corrections is not None:
        return "its steps are corrected outside of the optimiser"
    if not torch.is_grad_enabled():
        return "it trains where gradients are off"
    if len(local.data.labels) < (2 if has_norm(local.model) else 1):
        return "it has too few images"
    if len(local.targets) != len(local.data.labels):
        return "it has not one target for each image"
    return why_own_steps(local.optimizer, local.schedule) or why_not_stacked(local.model)


def key_of(local: LocalTraining) -> Hashable:
    """Return what clients must have in common to be trained in one step."""
    loss = loss_of(local)
    return (
        id(local.model), tuple(p.requires_grad for p in local.model.parameters()),
        identity_of(loss.of_outputs), identity_of(loss.of_parameters), loss.features,
        forms_of(loss.own), tuple(sorted(loss.frozen)), loss.draw is None, loss.rows,
        local.optimizer.model_copy(update={"lr": 1.0}), local.clip, local.batch_size, local.steps is None,
        local.half, local.augment, local.data.encoded, local.data.inputs.shape[1:],
        local.targets.shape[1:], local.targets.dtype,
    )  # fmt: skip


def identity_of(value: Any) -> Hashable:
    """Return what two functions of a loss, or modules in their place, are equal by."""
    if isinstance(value, partial):
        keywords = tuple((name, identity_of(one)) for name, one in sorted(value.keywords.items()))
        return identity_of(value.func), tuple(map(identity_of, value.args)), keywords
    if isinstance(value, nn.Module):
        return repr(value), tuple(value.state_dict()), _digest(value.state_dict())
    return cast(Hashable, value)


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b()
    for tensor in tensors.values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def forms_of(tensors: Mapping[str, Tensor]) -> Hashable:
    """Return the shapes and types of tensors by name."""
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in sorted(tensors.items()))


def train_stacked(
    trainings: Sequence[LocalTraining],
    starts: Sequence[Mapping[str, Tensor]],
    path: Path,
    graphs: StepGraphs | None = None,
) -> list[Trained]:
    """Train clients with one `key_of` in common; return what each has learned, in their order.

    `starts`: the parameters and buffers that each begins with. `graphs`: take steps of fixed shapes, which these
    record; but a loss that draws needs the host in each step. Raises NotStacked if a loss or model cannot be computed
    for many clients, and OutOfMemoryError. After an error nothing is changed, and the streams are where they were.
    """
    streams = [one for local in trainings for one in (local.order, loss_of(local).stream) if one is not None]
    states = [stream.get_state() for stream in streams]
    plans = [plan_of(local) for local in trainings]
    order = sorted(range(len(plans)), key=lambda i: -len(plans[i].sizes))
    sorted_, plans = [trainings[i] for i in order], [plans[i] for i in order]
    fixed = graphs is not None and loss_of(trainings[0]).draw is None
    try:
        used = _used_parameters(sorted_[0], starts[order[0]])
        step = StackedStep(sorted_, [starts[i] for i in order], used, path, counts_on_device=fixed)
        work = StackedBatches(sorted_, plans)
        if graphs is not None and fixed:
            values = graphs.train((key_of(sorted_[0]), len(plans), path, used), step, work)
        else:
            values = _train(step, work)
        found = _trained(step, values, plans)
    except BaseException:
        for stream, state in zip(streams, states, strict=True):
            stream.set_state(state)
        raise
    return [found[order.index(i)] for i in range(len(order))]


def _train(step: StackedStep, work: StackedBatches) -> Tensor:
    """Take all steps; return the losses, K x steps."""
    values: list[Tensor] = []
    clients = work.sizes.shape[1]
    for number, sizes in enumerate(work.sizes):
        count = int((sizes > 0).sum())
        images, targets, rows = work.of(number, count)
        drawn = _drawn(step.losses, targets, sizes.tolist(), step.device)
        with refusing_loops() if number == 0 else nullcontext():
            values.append(F.pad(step.take(images, targets, rows, drawn), (0, clients - count)))
    return torch.stack(values, dim=1) if values else torch.zeros(clients, 0)


def _trained(step: StackedStep, values: Tensor, plans: Sequence[Plan]) -> list[Trained]:
    every = values.double().cpu()
    means = [
        float(every[i, len(plan.sizes) - plan.counted : len(plan.sizes)].mean()) if plan.sizes else 0.0
        for i, plan in enumerate(plans)
    ]
    return [Trained(mean, weights) for mean, weights in zip(means, step.weights(), strict=True)]


def _drawn(
    losses: Sequence[ModelLoss], targets: Tensor, sizes: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """Return what the losses draw for a batch, with rows of zeros where it is filled."""
    found: dict[str, list[Tensor]] = {}
    for loss, wanted, size in zip(losses, targets, sizes, strict=False):
        for name, tensor in loss.drawn(wanted[:size]).items():
            if name in loss.rows:
                filled = tensor.new_zeros(len(wanted), *tensor.shape[1:])
                filled[:size] = tensor
                tensor = filled
            found.setdefault(name, []).append(tensor)
    return {name: torch.stack(tensors).to(device) for name, tensors in found.items()}


def _used_parameters(local: LocalTraining, start: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of the trainable parameters that the loss depends on; others get no weight decay either."""
    model = copy.deepcopy(local.model).train()
    model.load_state_dict(dict(start))
    few = local.data.take(torch.arange(min(2, len(local.data.labels))).numpy())
    targets = local.targets[: len(few.labels)].to(local.preprocess.device)
    loss = loss_of(local)
    if loss.stream is not None:  # the probe draws from a copy
        loss = replace(loss, stream=torch.Generator().set_state(loss.stream.get_state()))
    value = loss(model, local.preprocess.of(few), targets)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return frozenset(name for name, gradient in zip(named, found, strict=True) if gradient is not None)

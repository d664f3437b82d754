"""Local training of many clients with losses that compare the images of a batch, in steps of batches of one size."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import batch_sizes
from .batches import batches
from .stacked_models import Stack, refusing_loops
from .stacked_networks import StackedNetworks, used_parameters
from .stacked_training import Trained, forms_of, identity_of, key_of, why_alone
from .training import BatchLoss, LocalTraining, cross_entropy


def why_compared_alone(local: LocalTraining) -> str | None:
    """Return why a client with a BatchLoss can only be trained alone, or None."""
    if local.half is not None:  # under vmap, autocast computes other parts of a loss with 16 bits
        return "16 bits with a loss that compares the images of a batch"
    return why_alone(replace(local, loss=cross_entropy))


def comparison_key(local: LocalTraining) -> Hashable:
    """Return what clients with a BatchLoss must have in common to be trained in one step."""
    loss = cast(BatchLoss, local.loss)
    return key_of(replace(local, loss=cross_entropy)), identity_of(loss.of_batch), forms_of(loss.own)


def compare_stacked(trainings: Sequence[LocalTraining], starts: Sequence[Mapping[str, Tensor]]) -> list[Trained]:
    """Train clients with one `comparison_key`; return what each has learned, in their order.

    In each step, clients whose batches have one size are computed together: no row of a batch is filled. `starts`: the
    parameters and buffers that each begins with. Raises NotStacked, and OutOfMemoryError. After an error nothing is
    changed, and the streams are where they were.
    """
    streams = [local.order.get_state() for local in trainings]
    try:
        return _compared(trainings, starts)
    except BaseException:
        for local, state in zip(trainings, streams, strict=True):
            local.order.set_state(state)
        raise


def _compared(trainings: Sequence[LocalTraining], starts: Sequence[Mapping[str, Tensor]]) -> list[Trained]:
    lengths = [_steps_of(local) for local in trainings]
    order = sorted(range(len(trainings)), key=lambda i: -lengths[i][0])
    works, steps = [trainings[i] for i in order], [lengths[i][0] for i in order]
    first, device = works[0], works[0].preprocess.device
    loss, model = cast(BatchLoss, first.loss), copy.deepcopy(first.model).train()
    model.load_state_dict(dict(starts[order[0]]))
    states = [{name: tensor.to(device) for name, tensor in starts[i].items()} for i in order]
    few = first.data.take(torch.arange(min(2, len(first.data.labels))).numpy())
    targets = first.targets[: len(few.labels)].to(device)
    used = used_parameters(copy.deepcopy(model), lambda one: loss(one, first.preprocess.of(few), targets))
    own = [cast(BatchLoss, local.loss).own for local in works]
    networks = StackedNetworks(model, states, used, own, [local.optimizer for local in works], first.clip)
    parts, values = [_batches_of(local) for local in works], []
    for step in range(steps[0]):
        live = sum(1 for mine in steps if mine > step)
        with refusing_loops() if step == 0 else nullcontext():
            losses, gradients = _step(networks, loss, [next(part) for part in parts[:live]])
            networks.step(gradients)
        values.append(F.pad(losses, (0, len(steps) - live)))
    every = torch.stack(values, dim=1).double().cpu() if values else torch.zeros(len(works), 0, dtype=torch.float64)
    found = [
        Trained(float(every[i, mine - lengths[j][1] : mine].mean()) if mine else 0.0, networks.state(i))
        for i, (j, mine) in enumerate(zip(order, steps, strict=True))
    ]
    return [found[order.index(i)] for i in range(len(order))]


def _step(networks: StackedNetworks, loss: BatchLoss, drawn: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the losses of the first clients, k, and their gradients, k x W."""
    groups: dict[int, list[int]] = {}
    for client, (images, _) in enumerate(drawn):
        groups.setdefault(len(images), []).append(client)
    device = networks.flat.device
    losses, gradients = networks.flat.new_empty(len(drawn)), torch.empty_like(networks.flat[: len(drawn)])

    def of_batch(model: nn.Module, batch: Stack, own: dict[str, Tensor]) -> Tensor:
        return loss.of_batch(model, batch["images"], batch["targets"], own)

    for clients in groups.values():
        images, targets = (torch.stack(part) for part in zip(*(drawn[i] for i in clients), strict=True))
        rows = slice(len(drawn)) if len(groups) == 1 else torch.tensor(clients, device=device)
        found = networks.gradients(rows, of_batch, {"images": images, "targets": targets})
        losses[rows], gradients[rows] = found
    return losses, gradients


def _steps_of(local: LocalTraining) -> tuple[int, int]:
    """Return the number of a client's steps, and how many of them, the last ones, its loss is the mean of."""
    if local.steps is not None:
        return local.steps, local.steps
    in_epoch = len(batch_sizes(len(local.data.labels), local.batch_size, local.drop_last))
    return local.epochs * in_epoch, in_epoch


def _batches_of(local: LocalTraining) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a client's batches, epoch by epoch, with the draws of `train`."""
    done = 0
    for _ in count():
        most = None if local.steps is None else local.steps - done
        part = batches(
            local.data, local.targets, local.batch_size, local.preprocess, local.order, local.augment, most,
            drop_last=local.drop_last, positions=local.positions,
        )  # fmt: skip
        for batch in part:
            done += 1
            yield batch

"""Training without labels of many clients in one step."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contrast import ENCODER, Batch, ContrastiveTraining
from .stacked_models import refusing_loops, why_not_stacked
from .stacked_networks import StackedNetworks, used_parameters
from .stacked_optimizers import why_own_steps
from .stacked_training import Trained, forms_of, identity_of


def why_contrasted_alone(training: ContrastiveTraining) -> str | None:
    """Return why a client can only be trained alone, or None."""
    if not torch.is_grad_enabled():
        return "it trains where gradients are off"
    own_steps = why_own_steps(training.optimizer, training.schedule)
    return training.alone_because or own_steps or why_not_stacked(training.networks)


def contrast_key(training: ContrastiveTraining) -> Hashable:
    """Return what clients must have in common to be trained in one step."""
    encoder = training.model
    others = {name: network for name, network in training.networks.items() if network is not encoder}
    return (
        id(encoder), tuple(p.requires_grad for p in encoder.parameters()),
        tuple((name, repr(network), forms_of(network.state_dict())) for name, network in others.items()),
        tuple(module.training for network in others.values() for module in network.modules()),
        identity_of(training.loss), identity_of(training.after_step), forms_of(training.kept),
        training.optimizer.model_copy(update={"lr": 1.0}), training.clip, training.batch_size,
    )  # fmt: skip


def contrast_stacked(trainings: Sequence[ContrastiveTraining], starts: Sequence[Mapping[str, Tensor]]) -> list[Trained]:
    """Train clients with one `contrast_key` in common; return what each has learned, in their order.

    `starts`: the encoders' parameters and buffers. The other networks of each client, and what its loss keeps, are
    changed as by training alone. Raises NotStacked, and OutOfMemoryError. After an error nothing is changed.
    """
    order = sorted(range(len(trainings)), key=lambda i: -trainings[i].steps)
    works, steps = [trainings[i] for i in order], [trainings[i].steps for i in order]
    first, device = works[0], works[0].preprocess.device
    module = copy.deepcopy(first.networks)
    module[ENCODER].load_state_dict(dict(starts[order[0]]))
    module[ENCODER].train()
    some = next(first.batches())

    def loss(networks: nn.Module) -> Tensor:
        return first.loss(cast(nn.ModuleDict, networks), some, dict(first.kept))

    used = used_parameters(copy.deepcopy(module), loss)
    states = [_state_of(trainings[i], starts[i], device) for i in order]
    networks = StackedNetworks(
        module, states, used, [one.kept for one in works], [one.optimizer for one in works], first.clip
    )
    batches, values = [one.batches() for one in works], []
    for step in range(steps[0]):
        count = sum(1 for mine in steps if mine > step)
        with refusing_loops() if step == 0 else nullcontext():
            losses, gradients = networks.gradients(slice(count), first.loss, _joined(batches[:count], device))
            networks.step(gradients)
            if first.after_step is not None:
                networks.do(count, first.after_step)
        values.append(F.pad(losses, (0, len(steps) - count)))
    every = torch.stack(values, dim=1).double().cpu()
    found = [
        Trained(float(every[i, : one.steps].mean()), _ended(one, networks.state(i), _row(networks.kept, i)))
        for i, one in enumerate(works)
    ]
    return [found[order.index(i)] for i in range(len(order))]


def _state_of(training: ContrastiveTraining, start: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a client's networks by name; of its encoder those that it begins with."""
    states = {name: network.state_dict() for name, network in training.networks.items()} | {ENCODER: dict(start)}
    return {f"{part}.{name}": tensor.to(device) for part, state in states.items() for name, tensor in state.items()}


def _joined(batches: Sequence[Iterator[Batch]], device: torch.device) -> dict[str, Tensor]:
    """Return the clients' next batches as one, k x B x ..."""
    found = [next(one) for one in batches]
    return {name: torch.stack([batch[name] for batch in found]).to(device) for name in found[0]}


def _row(tensors: Mapping[str, Tensor], client: int) -> dict[str, Tensor]:
    return {name: tensor[client].clone() for name, tensor in tensors.items()}


def _ended(training: ContrastiveTraining, state: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Change what a client has beside its encoder; return the encoder's parameters and buffers."""
    training.kept.update(kept)
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in training.networks}
    for full_name, tensor in state.items():
        part, _, name = full_name.partition(".")
        parts[part][name] = tensor
    for part, network in training.networks.items():
        if part != ENCODER:
            network.load_state_dict(parts[part])
    return parts[ENCODER]

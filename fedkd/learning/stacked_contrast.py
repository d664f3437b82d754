"""Training without labels of many clients in one step: their networks' tensors are stacked, one row for each client.

The whole loss of a client runs under `vmap`. Batches are whole, so no row of a batch is filled, and a loss may compare
the images of a batch. Clients that have finished are no longer part of a step.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .contrast import ENCODER, AfterStep, Batch, ContrastiveTraining
from .stacked_models import Stack, refusing_loops, stacked, why_not_stacked
from .stacked_optimizers import make_stacked
from .stacked_parameters import clipped, named_rows
from .stacked_training import Trained, forms_of, identity_of

_NETWORKS = "networks."


def why_contrasted_alone(training: ContrastiveTraining) -> str | None:
    """Return why a client can only be trained alone, or None."""
    if not torch.is_grad_enabled():
        return "it trains where gradients are off"
    return training.alone_because or why_not_stacked(training.networks)


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
    work = _Stacked([trainings[i] for i in order], [starts[i] for i in order])
    found = work.run()
    return [found[order.index(i)] for i in range(len(order))]


class _Call(nn.Module):
    """Calls a function of networks, whose tensors `functional_call` replaces; returns its result and the buffers."""

    def __init__(self, networks: nn.ModuleDict) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, function: Any, *arguments: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return the result, and the networks' buffers after it."""
        return function(self.networks, *arguments), dict(self.named_buffers())


class _Stacked:
    """One stacked training. Clients are in the order of their number of steps, the most first."""

    def __init__(self, trainings: list[ContrastiveTraining], starts: list[Mapping[str, Tensor]]) -> None:
        first = trainings[0]
        self.trainings = trainings
        self.call = _Call(copy.deepcopy(first.networks))
        self.call.networks[ENCODER].train()
        states = [_state_of(training, start) for training, start in zip(trainings, starts, strict=True)]
        used = _used_parameters(first, starts[0])
        self.shapes = {name: states[0][name].shape for name in states[0] if name in used}
        self.flat = torch.stack([torch.cat([state[name].flatten() for name in self.shapes]) for state in states])
        self.rest = {name: stacked([s[name] for s in states]) for name in states[0] if name not in used}
        self.kept = {name: stacked([training.kept[name] for training in trainings]) for name in first.kept}
        self.optimizer = make_stacked([training.optimizer for training in trainings], self.flat)

    def run(self) -> list[Trained]:
        """Take all steps; then change what the clients have beside their encoders."""
        steps = [training.steps for training in self.trainings]
        batches = [training.batches() for training in self.trainings]
        values = []
        for step in range(steps[0]):
            count = sum(1 for mine in steps if mine > step)
            with refusing_loops() if step == 0 else nullcontext():
                values.append(F.pad(self._step(_joined(batches[:count], self.flat.device)), (0, len(steps) - count)))
        every = torch.stack(values, dim=1).double().cpu()
        return [
            Trained(float(every[i, :mine].mean()), self._ended(i, training))
            for i, (training, mine) in enumerate(zip(self.trainings, steps, strict=True))
        ]

    def _step(self, batch: Batch) -> Tensor:
        """Take a step of the first clients; return their losses, k."""
        count, loss = len(next(iter(batch.values()))), self.trainings[0].loss
        leaf = self.flat[:count].detach().requires_grad_()
        rest = {name: tensor[:count] for name, tensor in self.rest.items()}
        kept = {name: tensor[:count] for name, tensor in self.kept.items()}

        def one(tensors: Stack, batch: Batch, kept: Stack) -> tuple[Tensor, Stack, Stack]:
            changed = dict(kept)
            value, buffers = functional_call(self.call, dict(tensors), (loss, batch, changed), strict=True)
            return value, buffers, changed

        values, buffers, changed = torch.vmap(one)(named_rows(leaf, self.shapes) | rest, dict(batch), kept)
        (gradients,) = torch.autograd.grad(values.sum(), leaf)
        self.optimizer.step(self.flat[:count], clipped(gradients, self.trainings[0].clip))
        for mine, new in ((self.rest, buffers), (self.kept, changed)):
            for name, tensor in new.items():
                mine[name][:count] = tensor.detach()
        if (after_step := self.trainings[0].after_step) is not None:
            self._after(after_step, named_rows(self.flat[:count], self.shapes) | rest)
        return values.detach()

    def _after(self, after_step: AfterStep, tensors: Stack) -> None:
        def one(tensors: Stack) -> Tensor:
            functional_call(self.call, dict(tensors), (after_step,), strict=True)
            return next(iter(tensors.values()))

        torch.vmap(one)(dict(tensors))

    def _ended(self, client: int, training: ContrastiveTraining) -> dict[str, Tensor]:
        """Change what a client has beside its encoder; return the encoder's parameters and buffers."""
        rows = named_rows(self.flat[client : client + 1], self.shapes)
        tensors = {name: tensor[0] for name, tensor in rows.items()}
        tensors |= {name: tensor[client] for name, tensor in self.rest.items()}
        training.kept.update({name: tensor[client].clone() for name, tensor in self.kept.items()})
        for part, network in training.networks.items():
            if network is not training.model:
                start = f"{_NETWORKS}{part}."
                network.load_state_dict({n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)})
        start = f"{_NETWORKS}{ENCODER}."
        return {n.removeprefix(start): tensor for n, tensor in tensors.items() if n.startswith(start)}


def _state_of(training: ContrastiveTraining, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a client's networks by name; of its encoder those that it begins with."""
    states = {name: network.state_dict() for name, network in training.networks.items()} | {ENCODER: dict(start)}
    device = training.preprocess.device
    return {f"{_NETWORKS}{part}.{n}": t.to(device) for part, state in states.items() for n, t in state.items()}


def _joined(batches: Sequence[Iterator[Batch]], device: torch.device) -> dict[str, Tensor]:
    """Return the clients' next batches as one, k x B x ..."""
    found = [next(one) for one in batches]
    return {name: torch.stack([batch[name] for batch in found]).to(device) for name in found[0]}


def _used_parameters(training: ContrastiveTraining, start: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the trainable parameters that the loss depends on; others get no weight decay either."""
    networks = copy.deepcopy(training.networks)
    networks[ENCODER].load_state_dict(dict(start))
    networks[ENCODER].train()
    value = training.loss(networks, next(training.batches()), dict(training.kept))
    named = {name: p for name, p in networks[ENCODER].named_parameters() if p.requires_grad}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {f"{_NETWORKS}{ENCODER}.{n}" for n, gradient in zip(named, found, strict=True) if gradient is not None}

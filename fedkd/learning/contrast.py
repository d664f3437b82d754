"""Training of an encoder without labels: steps on batches of views, with a loss that may compare their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from ..config import AnyOptimizer, ScheduleConfig
from .batches import Preprocess
from .optimizers import make_optimizer, scheduled

ENCODER = "encoder"  # the trained one of the networks
Batch = Mapping[str, Tensor]  # `first`, `second`: two views of B images; what else a loss reads of this batch
Kept = dict[str, Tensor]  # what a loss keeps from step to step, such as a queue
ContrastiveLoss = Callable[[nn.ModuleDict, Batch, Kept], Tensor]
AfterStep = Callable[[nn.ModuleDict], None]


@dataclass(frozen=True)
class ContrastiveTraining:
    """One call of training without labels, which the vectorised engine does for many clients in one step.

    `networks`: `encoder`, which is trained, and others of this client, which get no gradient. `batches()`: its batches
    from the beginning, without end, each of the same size. `loss(networks, batch, kept)` may change the other networks
    in place, and the entries of `kept`. `after_step(networks)`, if given, comes after each step. Both are functions of
    a module, or `functools.partial` of one with plain constants: two clients share a step if these are equal.
    `alone_because`: why no other client can share a step.
    """

    networks: nn.ModuleDict
    batches: Callable[[], Iterator[Batch]]
    batch_size: int
    steps: int
    loss: ContrastiveLoss
    after_step: AfterStep | None
    kept: Kept
    optimizer: AnyOptimizer
    clip: float | None
    preprocess: Preprocess
    alone_because: str | None = None
    schedule: ScheduleConfig | None = None  # of the steps

    @property
    def model(self) -> nn.Module:
        """Return the encoder."""
        return self.networks[ENCODER]

    def alone(self) -> float:
        """Return the result of `contrast_alone`."""
        return contrast_alone(self)


def contrast_alone(training: ContrastiveTraining) -> float:
    """Train one client's encoder, in train mode; return its mean loss over all steps."""
    encoder, networks = training.model.train(), training.networks
    optimizer = scheduled(make_optimizer(encoder, training.optimizer), training.schedule, training.steps)
    losses = []
    for batch in islice(training.batches(), training.steps):
        optimizer.zero_grad()
        value = training.loss(networks, batch, training.kept)
        value.backward()
        if training.clip is not None:
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), training.clip)
        optimizer.step()
        if training.after_step is not None:
            training.after_step(networks)
        losses.append(value.detach())
    return float(torch.stack(losses).double().mean())

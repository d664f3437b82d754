"""FedMoCo: an encoder learns to find the other view of an image among a queue of earlier images.

He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
arXiv:1911.05722, Algorithm 1; federated, and symmetric, as in EasyFL's code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ENCODER,
    Batch,
    Client,
    Contrast,
    Count,
    Encoder,
    Kept,
    Positive,
    SelfSupervised,
    SelfSupervisedClient,
    move_towards,
)

from .fedavg import FedAvg

KEYS = "key_encoder"
_QUEUE = "queue"


class MoCoClient(SelfSupervisedClient):
    """Keeps its queue of keys between rounds; in each round the key encoder starts from the received encoder."""

    def begin(self, encoder: Encoder) -> None:
        """Copy the encoder as the key encoder; load the queue, or the first time fill it with random directions."""
        super().begin(encoder)
        self.networks[KEYS] = copy.deepcopy(encoder).requires_grad_(False).train()
        kept, method = self.recall(_QUEUE), cast(MoCo, self.method)
        queue = kept["keys"] if kept else torch.randn(method.queue, method.width, generator=self.stream("queue"))
        self.kept[_QUEUE] = F.normalize(queue, dim=1).to(self.environment.device)

    def contrast(self) -> Contrast:
        """Return the InfoNCE loss at the strategy's temperature."""
        method = cast(MoCo, self.method)
        return partial(queue_contrast, momentum=method.momentum, temperature=method.temperature)

    def end(self, encoder: Encoder) -> None:
        """Store the queue."""
        self.keep(_QUEUE, {"keys": self.kept[_QUEUE].cpu()})


def queue_contrast(
    networks: nn.ModuleDict,
    batch: Batch,
    kept: Kept,
    first: Tensor,
    second: Tensor,
    *,
    momentum: float,
    temperature: float,
) -> Tensor:
    """Return the InfoNCE loss of each view with the other's key and the queue, summed; then queue the keys."""
    move_towards(networks[KEYS], networks[ENCODER], momentum)  # before the loss, as in EasyFL
    with torch.no_grad():
        keys = F.normalize(networks[KEYS](torch.cat([batch["first"], batch["second"]])), dim=1).chunk(2)
    queue = kept[_QUEUE]
    losses = [
        queue_loss(F.normalize(query, dim=1), key, queue, temperature)
        for query, key in ((first, keys[1]), (second, keys[0]))
    ]
    kept[_QUEUE] = torch.cat([*keys, queue])[: len(queue)]
    return losses[0] + losses[1]


def queue_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of [q.k, q.queue] / T with the key as the label (He et al., 2020, equation 1).

    All rows of length 1: queries and keys B x D, queue K x D.
    """
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


@dataclass(kw_only=True)
class MoCo(SelfSupervised, FedAvg):
    """MoCo (He et al., 2020) on each node; FedAvg of the query encoder.

    queue: the number of keys (4096); momentum: of the key encoder (0.99 in EasyFL); temperature: 0.2, as in MoCo v2,
    for heads with two layers.
    """

    client: ClassVar[type[Client]] = MoCoClient
    queue: Count = 4096
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    temperature: Positive = 0.2

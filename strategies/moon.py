"""MOON: FedAvg with a contrastive loss: features near those of the global model and far from the node's last model's.

Li, He, Song: Model-Contrastive Federated Learning, CVPR 2021, arXiv:2103.16257, equations 2 and 3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_TASK,
    Client,
    Loss,
    ModelLoss,
    NotNegative,
    OfOutputs,
    Outputs,
    Own,
    Payload,
    Positive,
    Task,
    label_loss,
)

from .fedavg import FedAvg, FedAvgClient

_PREVIOUS = "previous"


class MOONClient(FedAvgClient):
    """Keeps the last model that it returned."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights, and keep the result."""
        reply = super().fit(request)
        self.keep(_PREVIOUS, reply.weights)
        return reply

    def local_loss(self) -> Loss:
        """Return the loss of labels plus the contrastive loss with the received and the last model, both frozen."""
        method, last = cast(MOON, self.strategy), self.recall(_PREVIOUS)
        received = copy.deepcopy(self.model).eval().requires_grad_(False)
        previous = None
        if last is not None:
            previous = copy.deepcopy(received)
            previous.load_state_dict(last)
        loss = contrastive_loss(received, previous, method.mu, method.temperature, self.of_labels)
        return replace(loss, own=self.label_weights)


def contrastive_loss(
    received: nn.Module,
    previous: nn.Module | None,
    mu: float,
    temperature: float,
    of_labels: OfOutputs = label_loss,
) -> ModelLoss:
    """Return CE - mu log( e^(s_g/tau) / (e^(s_g/tau) + e^(s_p/tau)) ), the mean over the batch.

    CE, or what `of_labels` gives in its place; s_g, s_p: cosines of the model's features with those of the received and
    of the previous model. Without a previous model the contrastive loss is 0.
    """
    if previous is None:
        return ModelLoss(of_labels, features=True)
    both = {"received": received, "previous": previous}
    return ModelLoss(
        partial(_contrast, mu=mu, temperature=temperature, of_labels=of_labels), frozen=both, features=True
    )


def _contrast(
    outputs: Outputs,
    labels: Tensor,
    own: Own,
    frozen: Mapping[str, Outputs],
    mu: float,
    temperature: float,
    of_labels: OfOutputs,
) -> Tensor:
    others = [frozen[name].features for name in ("received", "previous")]
    cosines = torch.stack([F.cosine_similarity(outputs.features, other, dim=1) for other in others], dim=1)
    first = torch.zeros_like(cosines[:, 0], dtype=torch.int64)
    return of_labels(outputs, labels, own, {}) + mu * F.cross_entropy(cosines / temperature, first)


@dataclass(kw_only=True)
class MOON(FedAvg):
    """MOON (Li et al., 2021, equations 2 and 3).

    mu: 1 here; the paper tunes it in {0.1, 1, 5, 10}; 0 is FedAvg. temperature: tau, 0.5 in the paper. The paper's
    projection head is an option of the model, `model.projection = 256`, so that all methods of a comparison can have
    it. FedFTG's runs have no head, mu = 0.5 and tau = 5. A node that trains for the first time has no previous model:
    its contrastive loss is 0 (the authors' code uses the initial model).
    """

    client: ClassVar[type[Client]] = MOONClient
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    mu: NotNegative = 1.0
    temperature: Positive = 0.5

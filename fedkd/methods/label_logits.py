"""Methods that exchange mean logits by label: the client half, the loss, and the tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import NotNegative
from ..core.client import Client
from ..core.round import Round
from ..core.strategy import Strategy
from ..learning.training import Loss
from ..messages.payload import Payload
from .class_means import ClassMeans


class LabelLogitsClient(Client):
    """Trains with a pull towards the table's row of each image's label; returns its own mean logits by label."""

    def fit(self, request: Payload) -> Payload:
        """Train on the node's images, keep the model; return its table, and which labels it has images of."""
        reply = self._train(request)
        self.keep_model()
        return reply

    def _train(self, request: Payload) -> Payload:
        method: LabelLogits = self.strategy
        means = ClassMeans(len(self.environment.data.classes))
        during = method.means_over == "training"
        self.train_locally(label_logits_loss(request, method.gamma, means if during else None))
        if not during:
            means.add(self.predict(self.data), self.labels)
        return means.payload("logits")


def label_logits_loss(request: Payload, gamma: float, means: ClassMeans | None) -> Loss:
    """Return CE(z, y) + gamma H(softmax(t_y), softmax(z)), t_y being the table's row of the label.

    H is the cross-entropy of probabilities: logits are never targets themselves. An image whose label has no row adds
    nothing to the second term, which is a mean over all images of the batch. `means` collects z by label on the way.
    """
    table = request.logits.get("table")
    present = request.statistics.get("present")

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        if means is not None:
            means.add(logits, labels)
        value = F.cross_entropy(logits, labels)
        if table is None or present is None:
            return value
        targets = torch.softmax(table.to(logits.device)[labels], dim=1)
        known = present.to(logits.device)[labels].to(logits.dtype)
        return value + gamma * (F.cross_entropy(logits, targets, reduction="none") * known).mean()

    return loss


@dataclass(kw_only=True)
class LabelLogits(Strategy):
    """What FD and FedDistill share: tables of mean logits by label. Models may differ.

    gamma: the weight of the pull. means_over: `training`, the outputs as they pass by in local training, while the
    weights move (FD: over the local period), or `after`, one pass over the node's images after it.
    """

    gamma: NotNegative = 1.0
    means_over: Literal["training", "after"] = "training"
    tables: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def teachings(self, federation: Round) -> dict[int, Payload]:
        """Return what goes down to each node of the cohort: the last round's table for it, once there is one."""
        shared: dict[int, Payload] = {}
        payloads = {}
        for node in federation.cohort:
            entry = self.tables.get(node, self.tables.get(-1))
            if id(entry) not in shared:
                shared[id(entry)] = _teaching(entry)
            payloads[node] = shared[id(entry)]
        return payloads


def _teaching(entry: tuple[Tensor, Tensor] | None) -> Payload:
    if entry is None:
        return Payload()
    table, present = entry
    return Payload(logits={"table": table}, statistics={"present": present.to(torch.uint8)})

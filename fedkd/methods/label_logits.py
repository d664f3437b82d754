"""Methods that exchange the mean logits of each label: the client half, the loss, and the tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import NotNegative
from ..core.client import Client
from ..core.round import Round
from ..core.strategy import Strategy
from ..data.spec import ANY_KIND, Kind
from ..learning.training import Loss
from ..messages.payload import Payload
from .class_means import ClassMeans


class LabelLogitsClient(Client):
    """Trains with a loss term that pulls each image's logits towards the table's row of its label. Returns its own mean
    logits of each label.
    """

    def fit(self, request: Payload) -> Payload:
        """Train on the node's images, keep the model; return its table, and the labels of its images."""
        reply = self._train(request)
        self.keep_model()
        return reply

    def _train(self, request: Payload) -> Payload:
        method: LabelLogits = self.strategy
        means = self._new_means()
        during = method.means_over == "training"
        self.train_locally(label_logits_loss(request, method.gamma, means if during else None))
        if not during:
            means.add(self.predict(self.data), self.labels)
        return self._table(means)

    def _new_means(self) -> ClassMeans:
        return ClassMeans(len(self.environment.data.classes))

    def _table(self, means: ClassMeans) -> Payload:
        return means.payload("logits")


def label_logits_loss(request: Payload, gamma: float, means: ClassMeans | None) -> Loss:
    """Return CE(z, y) + gamma H(softmax(t_y), softmax(z)). t_y is the table's row of the label.

    H is the cross-entropy of probabilities: logits are never targets themselves. An image whose label has no row adds
    0 to the second term, which is a mean over all images of the batch. `means`, if given, collects z by label.
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
    """The common part of FD and FedDistill: tables of the mean logits of each label. Models may differ.

    gamma: the weight of the second loss term. means_over: `training`, the outputs during local training, while the
    weights change (FD: over the local period), or `after`, one pass over the node's images after training.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    gamma: NotNegative = 1.0
    means_over: Literal["training", "after"] = "training"
    tables: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def teachings(self, federation: Round) -> dict[int, Payload]:
        """Return the payload for each node of the cohort: the last round's table for it, if there is one."""
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

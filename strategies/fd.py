"""FD: clients exchange a table of mean logits by label, and need no public data.

Jeong, Oh, Kim, Park, Bennis, Kim: Communication-Efficient On-Device Machine Learning: Federated Distillation and
Augmentation under Non-IID Private Data, 2018, arXiv:1811.11479, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Client, Payload, Round, Strategy
from fedkd.learning.training import Loss
from fedkd.messages.arrays import Tensors, parts_of, under
from fedkd.methods.class_means import ClassMeans, expected_means


class LabelLogitsClient(Client):
    """Trains with a pull towards the table's row of each image's label; returns its own mean logits by label."""

    def fit(self, request: Payload) -> Payload:
        """Train on the node's images, keep the model; return its table, and which labels it has images of."""
        reply = self._train(request)
        self.keep_model()
        return reply

    def _train(self, request: Payload) -> Payload:
        method = cast(LabelLogits, self.strategy)
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


def leave_one_out(means: Mapping[int, Tensor], present: Mapping[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return for each node the mean of the other nodes' rows, C x C, over those that have the label, and which exist.

    (sum_j z_jc - z_kc) / (K_c - 1), where K_c nodes have label c; a node that lacks it gets the mean of all that do.
    """
    rows = {n: means[n].double() * present[n].double()[:, None] for n in means}
    total = torch.stack(list(rows.values())).sum(0)
    holders = torch.stack([present[n].double() for n in means]).sum(0)
    found = {}
    for node in means:
        others = holders - present[node].double()
        found[node] = (((total - rows[node]) / others.clamp(min=1)[:, None]).float(), others > 0)
    return found


@dataclass(kw_only=True)
class LabelLogits(Strategy):
    """What FD and FedDistill share: tables of mean logits by label. Models may differ.

    gamma: the weight of the pull. means_over: `training`, the outputs as they pass by in local training, while the
    weights move (FD: over the local period), or `after`, one pass over the node's images after it.
    """

    gamma: Annotated[float, Field(ge=0)] = 1.0
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

    def state(self) -> Tensors:
        """Return the tables, and the global model of a variant that has one."""
        kept = under("weights", self.weights or {})
        for node, (table, present) in self.tables.items():
            kept |= {f"table/{node}": table, f"present/{node}": present.to(torch.uint8)}
        return kept

    def restore(self, state: Tensors) -> None:
        """Take back what `state` returned."""
        kept = parts_of(state)
        self.weights = kept.get("weights")
        self.tables = {int(n): (table, kept["present"][n].bool()) for n, table in kept.get("table", {}).items()}


def _teaching(entry: tuple[Tensor, Tensor] | None) -> Payload:
    if entry is None:
        return Payload()
    table, present = entry
    return Payload(logits={"table": table}, statistics={"present": present.to(torch.uint8)})


@dataclass(kw_only=True)
class FD(LabelLogits):
    """FD (Jeong et al., 2018, Algorithm 1): each node is taught by the mean table of the others.

    gamma: 1 here, as in public frameworks; the paper's value was not found. The distance is the cross-entropy with the
    softmax of the table's row. A node that was not in the last cohort is taught by the mean of all that were.
    """

    client: ClassVar[type[Client]] = LabelLogitsClient

    def run_round(self, federation: Round) -> None:
        """Send each node the table of the others, gather the new tables."""
        classes = len(federation.environment.data.classes)
        means, present = {}, {}
        replies = federation.ask("fit", self.teachings(federation), expect=expected_means("logits", classes, classes))
        for node, reply in replies:
            means[node], present[node] = reply.logits["means"], reply.statistics["present"].bool()
        outsider = {**means, -1: torch.zeros(classes, classes)}  # -1: who has no row of its own
        nobody = {**present, -1: torch.zeros(classes, dtype=torch.bool)}
        self.tables = leave_one_out(outsider, nobody)

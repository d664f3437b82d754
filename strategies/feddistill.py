"""FedDistill: FD with one table for all, the global mean logits by label; alone, or beside averaged weights.

The baselines FedDistill and FedDistill-FL of Zhu, Hong, Zhou: Data-Free Knowledge Distillation for Heterogeneous
Federated Learning, ICML 2021, arXiv:2105.10056, as their code has them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from fedkd import (
    IMAGES,
    Client,
    LabelLogits,
    LabelLogitsClient,
    Payload,
    Round,
    expected_means,
    like,
    mean_over_nodes,
    weighted_mean,
)


class FedDistillFLClient(LabelLogitsClient):
    """Starts from the global weights, and returns the new ones beside its table."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights; return them, the table and the number of images."""
        self.load_model(request.weights)
        reply = self._train(request)
        return dataclasses.replace(reply, weights=self.weights(), numbers={"examples": len(self.data.labels)})


@dataclass(kw_only=True)
class FedDistill(LabelLogits):
    """FedDistill (Zhu et al., 2021, their code): the pull is towards the mean table of all nodes, oneself included.

    gamma: 1 there. Deviations, each from an error there: counts start at 0 (there at 1, which shrinks each mean by
    n / (n + 1)), a node that lacks a label has no part in that label's mean (there it counts as a row of zeros), and
    means start afresh each round.
    """

    client: ClassVar[type[Client]] = LabelLogitsClient

    def run_round(self, federation: Round) -> None:
        """Send the global table, gather the nodes' tables, average them by label."""
        classes = len(federation.environment.data.classes)
        expect = expected_means("logits", classes, classes)
        means, present = {}, {}
        for node, reply in federation.ask("fit", self.teachings(federation), expect=expect):
            means[node], present[node] = reply.logits["means"], reply.statistics["present"]
        self.tables = {-1: mean_over_nodes(means, present)}


@dataclass(kw_only=True)
class FedDistillFL(LabelLogits):
    """FedDistill-FL (Zhu et al., 2021, their code): FedDistill beside FedAvg; equal models."""

    client: ClassVar[type[Client]] = FedDistillFLClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True

    def run_round(self, federation: Round) -> None:
        """Send weights and table, average both."""
        assert self.weights is not None
        classes = len(federation.environment.data.classes)
        expect = dataclasses.replace(
            expected_means("logits", classes, classes), weights=like(self.weights), numbers={"examples": IMAGES}
        )
        teachings = self.teachings(federation)
        down = dataclasses.replace(next(iter(teachings.values())), weights=self.weights)  # one table for all
        means, present = {}, {}
        total: Payload | None = None
        for node, reply in federation.ask("fit", down, expect=expect):
            means[node], present[node] = reply.logits["means"], reply.statistics["present"]
            model = Payload(weights=reply.weights, numbers=reply.numbers)
            total = model if total is None else weighted_mean(total, model)
        assert total is not None
        self.weights, self.tables = total.weights, {-1: mean_over_nodes(means, present)}

"""FedDistill: FD with one table for all nodes, the global mean logits of each label. FedDistill-FL also runs FedAvg.

The baselines FedDistill and FedDistill-FL of Zhu, Hong, Zhou: Data-Free Knowledge Distillation for Heterogeneous
Federated Learning, ICML 2021, arXiv:2105.10056, as in their code.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from fedkd import (
    IMAGES,
    ClassMeans,
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

_HISTORY = "history"


class FedDistillClient(LabelLogitsClient):
    """With official_quirks it sums logits over its whole history, and all its rows count."""

    def _new_means(self) -> ClassMeans:
        means = super()._new_means()
        if not cast(FedDistill, self.strategy).official_quirks:
            return means
        before = self.recall(_HISTORY) or {
            "sums": torch.zeros(means.classes, means.classes, dtype=torch.float64),
            "counts": torch.ones(means.classes, dtype=torch.float64),
        }
        return ClassMeans(means.classes, before["sums"].clone(), before["counts"].clone())

    def _table(self, means: ClassMeans) -> Payload:
        if cast(FedDistill, self.strategy).official_quirks:
            assert means.sums is not None
            self.keep(_HISTORY, {"sums": means.sums, "counts": means.counts})
        return super()._table(means)


class FedDistillFLClient(FedDistillClient):
    """Starts from the global weights, and returns the new weights and its table."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights; return them, the table and the number of images."""
        self.load_model(request.weights)
        reply = self._train(request)
        return dataclasses.replace(reply, weights=self.weights(), numbers={"examples": len(self.data.labels)})


@dataclass(kw_only=True)
class FedDistill(LabelLogits):
    """FedDistill (Zhu et al., 2021, their code): a node learns from the mean table of all nodes, itself included.

    gamma: 1 in their code. Deviations, each because of an error in their code: counts start at 0 (their code: at 1,
    which shrinks each mean by n / (n + 1)); a node that lacks a label does not count in the mean of this label (their
    code: it counts as a row of zeros); means start again at 0 in each round. official_quirks: all as in their code.
    """

    client: ClassVar[type[Client]] = FedDistillClient
    official_quirks: bool = False

    def run_round(self, federation: Round) -> None:
        """Send the global table, collect the nodes' tables, average them by label."""
        classes = len(federation.environment.data.classes)
        expect = expected_means("logits", classes, classes)
        means, present = {}, {}
        for node, reply in federation.ask("fit", self.teachings(federation), expect=expect):
            means[node], present[node] = reply.logits["means"], reply.statistics["present"]
        self.tables = {-1: mean_over_nodes(means, present)}


@dataclass(kw_only=True)
class FedDistillFL(FedDistill):
    """FedDistill-FL (Zhu et al., 2021, their code): FedDistill together with FedAvg; equal models.

    official_quirks: as in FedDistill.
    """

    client: ClassVar[type[Client]] = FedDistillFLClient
    own_statistics: ClassVar[bool] = True
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

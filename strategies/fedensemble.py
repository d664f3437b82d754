"""FedEnsemble: FedAvg, whose prediction is the mean of the logits of all nodes' models.

The baseline FedEnsemble of Zhu, Hong, Zhou: Data-Free Knowledge Distillation for Heterogeneous Federated Learning, ICML
2021, arXiv:2105.10056, as in their code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    Client,
    Environment,
    GlobalModelClient,
    InputError,
    Kind,
    Payload,
    Round,
    Samples,
    Tensors,
    expected_model,
    like,
)

from .fedavg import FedAvg


class FedEnsembleClient(GlobalModelClient):
    """Also sends its running statistics of batch norm, if they are its own: the ensemble has its whole model."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights; return them, and the statistics that they lack."""
        reply = super().fit(request)
        state = self.model.state_dict()
        reply.statistics = {name: state[name].cpu() for name in state if name not in reply.weights}
        return reply


@dataclass(kw_only=True)
class FedEnsemble(FedAvg):
    """FedEnsemble (Zhu et al., 2021, their code): after a round, z(x) = 1/N sum_k z_k(x) over all N nodes.

    z_k: of the model that node k has then: its trained one if it was in the round's cohort, else the global model that
    the round began with; with train.batch_norm = "local" with its own statistics. `ensemble/accuracy` and
    `ensemble/loss` are of its prediction `on` all test samples, or on the nodes' own ones, each as often as nodes have
    it. The server computes N predictions of its test samples in each measured round.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    client: ClassVar[type[Client]] = FedEnsembleClient
    balances: ClassVar[bool] = True
    own_statistics: ClassVar[bool] = True
    on: Literal["all", "nodes"] = "all"
    statistics: dict[int, Tensors] = field(default_factory=dict, init=False)  # of nodes that have trained
    scores: dict[str, float] = field(default_factory=dict, init=False)

    def check(self, environment: Environment) -> None:
        """Raise InputError if the server lacks the test samples."""
        super().check(environment)
        data = environment.data
        if not len(data.test.labels) or (self.on == "nodes" and environment.config.data.sites is not None):
            need = "on = 'nodes' needs the nodes' test samples" if self.on == "nodes" else "it needs test samples"
            raise InputError(f"strategy.name = 'fedensemble': {need} on the server, which has none; see data.sites.")

    def run_round(self, federation: Round) -> None:
        """Send the global model, average the trained models; predict with all models as they lie."""
        assert self.weights is not None
        start, environment = self.weights, federation.environment
        names = environment.model(0).state_dict()
        expect = replace(expected_model(start), statistics=like({n: t for n, t in names.items() if n not in start}))
        test, times = self._test(environment, federation.nodes) if federation.due else (environment.data.test, None)
        total: Payload | None = None
        logits: Tensor | None = None
        trained, merge = set(), self.mean(federation.config.train)
        for node, reply in federation.ask("fit", Payload(weights=start), expect=expect, stream=True):
            trained.add(node)
            if reply.statistics:
                self.statistics[node] = reply.statistics
            if federation.due:
                logits = _sum(logits, _logits(environment, {**reply.weights, **reply.statistics}, test))
            model = Payload(weights=reply.weights, numbers=reply.numbers)
            total = model if total is None else merge(total, model)
        assert total is not None
        self.weights = total.weights
        federation.log("train_loss", total.numbers["loss"])
        if not federation.due:
            return
        others = [node for node in federation.nodes if node not in trained]
        for node in (node for node in others if node in self.statistics):
            logits = _sum(logits, _logits(environment, {**start, **self.statistics[node]}, test))
        if equal := sum(node not in self.statistics for node in others):
            logits = _sum(logits, equal * _logits(environment, start, test))
        assert logits is not None
        self.scores = _scores(logits / len(federation.nodes), torch.from_numpy(test.labels), times)

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the metrics of the global model, and after round 1 those of the ensemble."""
        return {**super().measure(federation), **self.scores}

    def _test(self, environment: Environment, nodes: Sequence[int]) -> tuple[Samples, Tensor | None]:
        """Return the test samples, and how often each counts."""
        test, parts = environment.data.test, environment.data.test_parts
        if self.on == "all":
            return test, None
        positions, times = np.unique(np.concatenate([parts[node] for node in nodes]), return_counts=True)
        return test.take(positions), torch.from_numpy(times)


def _logits(environment: Environment, weights: Tensors, test: Samples) -> Tensor:
    return environment.logits(0, weights, test).double()


def _sum(total: Tensor | None, logits: Tensor) -> Tensor:
    return logits if total is None else total + logits


def _scores(logits: Tensor, labels: Tensor, times: Tensor | None) -> dict[str, float]:
    weights = torch.ones(len(labels)) if times is None else times
    weights = weights.double() / weights.sum()
    right = (logits.argmax(1) == labels).double()
    loss = F.cross_entropy(logits, labels, reduction="none")
    return {"ensemble/accuracy": float(right @ weights), "ensemble/loss": float(loss @ weights)}

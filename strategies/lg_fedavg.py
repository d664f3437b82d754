"""LG-FedAvg: nodes keep the first layers of their models, and average the last ones.

Liang, Liu, Liu, Salakhutdinov, Morency: Think Locally, Act Globally: Federated Learning with Local and Global
Representations, 2020, arXiv:2001.01523, Algorithm 1; and the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedkd import (
    ANY_TASK,
    Client,
    Count,
    Environment,
    Expected,
    InputError,
    Payload,
    Reply,
    Round,
    SharedPart,
    SharedPartClient,
    Task,
    Tensors,
    layers_of,
    like,
    weighted_mean,
)

_TRAINED, _SCORE = "trained", "best"  # in a node's state, with measured = "best": its own layers, its best accuracy


class LGFedAvgClient(SharedPartClient):
    """With measured = "best" the node's personal model is the best one so far, beside the layers that it trains."""

    @property
    def kept_as(self) -> str:
        """Return the name in the node's state of the layers that it trains and does not share."""
        return super().kept_as if self.strategy.measured == "newest" else _TRAINED

    def send_best(self, request: Payload) -> Payload:
        """Return the node's best model so far on its own test images: of equal ones the newest.

        The newest model has the received shared layers, and the node's own ones.
        """
        self.load_parts(request.weights)
        accuracy = self.score(self.test_data)["accuracy"]
        kept = self.recall(_SCORE)
        if kept is None or accuracy >= float(kept["accuracy"]):
            self.keep_model()
            self.keep(_SCORE, {"accuracy": torch.tensor(accuracy, dtype=torch.float64)})
        return Payload(weights=self.best_model(), numbers={"examples": 1})

    def evaluate(self, request: Payload) -> Payload:
        """Measure the node's personal model with the received shared layers."""
        if self.strategy.measured == "newest":
            return super().evaluate(request)
        self.load_model({**self.best_model(), **request.weights})
        for name, value in self.score(self.test_data).items():
            self.report(f"personal/{name}", value)
        return Payload()

    def best_model(self) -> Tensors:
        """Return the kept best model. Raises ValueError if there is none yet."""
        best = self.recall(super().kept_as)
        if best is None:
            raise ValueError("the node has no best model: its request 'send_best' has failed")
        return best


@dataclass(kw_only=True)
class LGFedAvg(SharedPart):
    """LG-FedAvg (Liang et al., 2020): the global model, the last layers, is averaged; the local one stays at its node.

    A node trains both together. shared_layers: how many layers with weights, counted from the end, are shared (the
    code's `num_layers_keep`, 3 of 5 for MNIST; see `layers_of`). The layers before may differ between nodes. The
    authors' code averages the cohort's layers with `weighting = "uniform"`, and starts from a FedAvg model: the local
    layers of nodes that start from random weights never meet. `model.weights` gives all nodes such a start.

    measured: `newest`, or `best`, the evaluation of the authors' code, only for a comparison with their tables: it
    chooses on test images, and nodes send whole models for it. In each measured round each node's best model so far on
    its own test images is found; w = 1/N sum_k w_k of all N best ones is measured as `global/...`, the best ones with
    the last layers of w as `personal/...`. `ensemble/accuracy`, of the mean output of these, is measured in rounds from
    1 on in which `personal/accuracy` is higher than before.
    """

    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = LGFedAvgClient
    shared_layers: Count = 1
    measured: Literal["newest", "best"] = "newest"
    highest: float = field(default=-1.0, init=False)  # the highest personal/accuracy from round 1 on

    def shared_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights of the global layers."""
        return [name for layer in layers_of(model)[-self.shared_layers :] for name in layer]

    def check(self, environment: Environment) -> None:
        """Raise InputError for parts that do not fit, and for a config without what measured = "best" needs."""
        super().check(environment)
        config, data = environment.config, environment.data
        if self.measured == "newest":
            return
        needs = {
            "a simulation: sites keep their models": config.data.sites is None,
            "a classification": data.spec.task == "classification",
            "one architecture for all nodes": len(config.model.architectures) == 1,
        }
        for need, there in needs.items():
            if not there:
                raise InputError(f"strategy.measured = 'best' needs {need}; set strategy.measured = 'newest'.")

    def prepare(self, federation: Round) -> None:
        """Start with the shared part of fresh weights."""
        super().prepare(federation)
        self._average_best(federation)

    def run_round(self, federation: Round) -> None:
        """Send the shared part; average what the nodes have made of it."""
        super().run_round(federation)
        self._average_best(federation)

    def evaluation(self, federation: Round) -> Payload:
        """Return the newest shared part; with measured = "best" that of the mean of the best models."""
        if self.measured == "newest":
            return super().evaluation(federation)
        assert self.weights is not None
        return Payload(weights={name: self.weights[name] for name in self.shared})

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the metrics of the mean of the best models, and of their ensemble if nodes are better than before."""
        metrics = super().measure(federation)
        if self.measured == "newest" or not federation.environment.on_global_test or not federation.number:
            return metrics
        federation.close()  # the nodes' metrics are there
        values = federation.record.nodes.get("personal/accuracy", {})
        mean = sum(values[node] for node in sorted(values)) / max(len(values), 1)
        if mean > self.highest:
            self.highest = mean
            metrics["ensemble/accuracy"] = self._ensemble_accuracy(federation)
        return metrics

    def _best_models(self, federation: Round) -> Iterator[Reply]:
        expect = Expected(weights=like(federation.environment.model(0).state_dict()), numbers={"examples": (1.0, 1.0)})
        return federation.ask_measured("send_best", Payload(weights=self.shared), expect=expect)

    def _average_best(self, federation: Round) -> None:
        if self.measured == "newest" or not federation.due:
            return
        total: Payload | None = None
        for _, reply in self._best_models(federation):
            total = reply if total is None else weighted_mean(total, reply)
        assert total is not None
        self.weights = total.weights

    def _ensemble_accuracy(self, federation: Round) -> float:
        environment, test = federation.environment, federation.environment.data.test
        shared = self.evaluation(federation).weights
        outputs = torch.zeros(len(test.labels), len(environment.data.classes), dtype=torch.float64)
        for _, reply in self._best_models(federation):
            outputs += environment.logits(0, {**reply.weights, **shared}, test)
        right: Tensor = outputs.argmax(1) == torch.from_numpy(test.labels)
        return float(right.double().mean())

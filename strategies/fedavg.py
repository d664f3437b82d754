"""FedAvg: the mean of the clients' models, weighted by their numbers of images.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017, arXiv:1602.05629, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from fedkd import (
    ANY_KIND,
    ANY_TASK,
    Client,
    GlobalModelClient,
    Kind,
    Payload,
    Round,
    Strategy,
    Task,
    TrainConfig,
    expected_model,
    mean_weighted_by,
    uniform_mean,
    weighted_mean,
)


@dataclass(kw_only=True)
class FedAvg(Strategy):
    """FedAvg (McMahan et al., 2017, Algorithm 1): w <- sum_k (n_k / n) w_k.

    Deviation: clients train whole epochs of shuffled batches, with a smaller last batch (see train.drop_last).
    Buffers (the statistics of batch norm) are averaged like weights (see train.batch_norm).
    weighting: of nodes in the mean: `examples`, their numbers of images n_k; `uniform`, as in much published code;
    `batches`, their numbers of local steps, as in Flower's baseline of FedProx.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    own_statistics: ClassVar[bool] = True
    client: ClassVar[type[Client]] = GlobalModelClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    weighting: Literal["examples", "uniform", "batches"] = "examples"

    def run_round(self, federation: Round) -> None:
        """Send the global model, average the trained models."""
        assert self.weights is not None
        expect = expected_model(self.weights)
        merge = self.mean(federation.config.train)
        merged = federation.ask("fit", Payload(weights=self.weights), expect=expect, merge=merge)
        self.weights = merged.weights
        federation.log("train_loss", merged.numbers["loss"])

    def mean(self, settings: TrainConfig) -> Callable[[Payload, Payload], Payload]:
        """Return the merge of two replies into their mean, weighted as `weighting` says."""
        if self.weighting == "examples":
            return weighted_mean
        return uniform_mean if self.weighting == "uniform" else partial(mean_weighted_by, weight=settings.batches)

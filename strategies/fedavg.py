"""FedAvg: the mean of the clients' models, weighted by their numbers of images.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017, arXiv:1602.05629, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

from fedkd import (
    ANY_KIND,
    ANY_TASK,
    Client,
    Environment,
    GlobalModelClient,
    InputError,
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


class FedAvgClient(GlobalModelClient):
    """Also says how many steps it has done, if the server leaves out nodes that do fewer than all."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights; return them, and with partial = "drop" the number `steps`."""
        reply = super().fit(request)
        method: FedAvg = self.strategy
        if method.partial == "drop":
            reply.numbers["steps"] = self.settings.batches(len(self.data.labels))
        return reply


@dataclass(kw_only=True)
class FedAvg(Strategy):
    """FedAvg (McMahan et al., 2017, Algorithm 1): w <- sum_k (n_k / n) w_k.

    Deviation: clients train whole epochs of shuffled batches, with a smaller last batch (see train.drop_last).
    Buffers (the statistics of batch norm) are averaged like weights (see train.batch_norm).
    weighting: of nodes in the mean: `examples`, their numbers of images n_k; `uniform`, as in much published code;
    `batches`, their numbers of steps of all local training, as in Flower's baseline of FedProx.
    partial: of nodes that do fewer epochs than all (faults.partial_work): `keep` their models in the mean, with the
    same weight, or `drop` them, as Li et al. (2020) let FedAvg do; if all nodes are such, the model stays as it is.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    own_statistics: ClassVar[bool] = True
    client: ClassVar[type[Client]] = FedAvgClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    weighting: Literal["examples", "uniform", "batches"] = "examples"
    partial: Literal["keep", "drop"] = "keep"

    def check(self, environment: Environment) -> None:
        """Raise InputError for partial = "drop" of a method whose round or client half does not know it."""
        known = type(self).run_round is FedAvg.run_round and issubclass(self.client, FedAvgClient)
        if self.partial == "drop" and not known:
            raise InputError(f"strategy.partial = 'drop': {type(self).__name__} keeps all models; remove it.")

    def run_round(self, federation: Round) -> None:
        """Send the global model, average the trained models."""
        assert self.weights is not None
        settings, expect = federation.config.train, expected_model(self.weights)
        merge = self.mean(settings)
        if self.partial == "drop":
            expect = replace(expect, numbers={**expect.numbers, "steps": (1, math.inf)})  # more than all count as all
            merge = partial(mean_of_whole, merge=merge, batches=settings.batches)
        merged = federation.ask("fit", Payload(weights=self.weights), expect=expect, merge=merge)
        if self.partial == "keep" or is_whole(merged, settings.batches):
            self.weights = merged.weights
            federation.log("train_loss", merged.numbers["loss"])

    def mean(self, settings: TrainConfig) -> Callable[[Payload, Payload], Payload]:
        """Return the merge of two replies into their mean, weighted as `weighting` says."""
        if self.weighting == "examples":
            return weighted_mean
        return uniform_mean if self.weighting == "uniform" else partial(mean_weighted_by, weight=settings.batches)


def mean_of_whole(
    total: Payload, reply: Payload, merge: Callable[[Payload, Payload], Payload], batches: Callable[[int], int]
) -> Payload:
    """Merge two replies by `merge`, but leave out one that is not whole."""
    if not is_whole(reply, batches):
        return total
    if not is_whole(total, batches):
        return reply
    total.numbers.pop("steps", None)  # a merged reply is whole
    return merge(total, reply)


def is_whole(reply: Payload, batches: Callable[[int], int]) -> bool:
    """Return whether a reply's node has done all its local steps; `batches`: how many, by its number of images."""
    return "steps" not in reply.numbers or reply.numbers["steps"] >= batches(int(reply.numbers["examples"]))

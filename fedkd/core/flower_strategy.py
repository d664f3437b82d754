"""Any Flower strategy (FedAdam, Krum, ...) as a fedkd strategy: Flower's phases inside the core's loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerBase

from ..errors import InputError, RunError
from ..messages.arrays import Tensors, array_record, tensors_of
from ..messages.merging import weighted_mean
from ..messages.payload import ANY_NUMBER, FLOWER_ARRAYS, IMAGES, Expected, Payload, like
from .client import Client, GlobalModelClient
from .environment import Environment
from .round import Round
from .strategy import Strategy


def is_flower_strategy(found: Any) -> bool:
    """Return whether this is a strategy class of Flower's, and not one of ours."""
    return isinstance(found, type) and issubclass(found, FlowerBase) and not issubclass(found, Strategy)


@dataclass(kw_only=True)
class FlowerStrategy(Strategy):
    """A strategy of Flower's. The core samples who takes part, from the run's seed; `cohort` says how many.

    Its training phase runs as Flower wrote it, with the generic client; its own evaluation phase is not used, since the
    core evaluates. Every array and list of arrays that it keeps between rounds is checkpointed. Where a strategy steps
    along the mean of the clients' moves (FedAdam, FedAvgM, ...), buffers such as the statistics of batch norm take no
    part in the step and get the weighted mean: a step could make variances negative.
    """

    client: ClassVar[type[Client]] = GlobalModelClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    base: FlowerBase
    name: str  # what the config calls it
    key: str = "strategy"  # and where
    kept: dict[str, Any] = field(default_factory=dict, init=False)  # the base's own attributes that rounds change

    def check(self, environment: Environment) -> None:
        """Refuse options that would draw nodes outside the core, or wait for more than the cohort."""
        if getattr(self.base, "fraction_train", 1.0) != 1.0:
            raise InputError(f"{self.key}.fraction_train: the nodes of a round are drawn by fedkd; set cohort instead.")
        cohort = environment.config.cohort or environment.data.clients
        for option in ("min_train_nodes", "min_available_nodes"):
            least = getattr(self.base, option, 0)
            if least > cohort:
                raise InputError(
                    f"{self.key}.{option} = {least}: {self.name} would wait for ever, a round has {cohort}."
                )

    def run_round(self, federation: Round) -> None:
        """Let the strategy write this round's messages, and aggregate the replies."""
        assert self.weights is not None
        for attribute, value in self.kept.items():
            setattr(self.base, attribute, value)
        expect = Expected(
            weights=like(self.weights),
            numbers={"num-examples": IMAGES, "train_loss": ANY_NUMBER},
        )
        grid = cast(Grid, _CohortGrid(federation))
        if hasattr(self.base, "current_arrays"):
            self.base.current_arrays = None  # FedAvgM would keep its own model, also where a wrapper has refined it
        messages = self.base.configure_train(federation.number, array_record(self.weights), ConfigRecord(), grid)
        replies = federation.exchange(messages, expect)
        arrays, metrics = self.base.aggregate_train(federation.number, replies)
        if arrays is None:
            raise RunError(f"Round {federation.number}: {self.name} made no model of {len(replies)} replies.")
        old, new = self.weights, tensors_of(arrays)
        if hasattr(self.base, "current_arrays"):
            new |= _mean_buffers(federation, replies)
        # Flower's weighted sums turn the integer counters of batch norm into floats
        self.weights = {name: tensor.to(old[name].dtype) for name, tensor in new.items()}
        self.kept = _arrays_of(self.base)
        if metrics is not None:
            federation.log("train", dict(metrics))


def _mean_buffers(federation: Round, replies: list[Message]) -> Tensors:
    trained = {name for name, _ in federation.environment.model(0).named_parameters()}
    total: Payload | None = None
    for reply in replies:
        weights = tensors_of(reply.content.array_records[FLOWER_ARRAYS])
        buffers = {name: tensor for name, tensor in weights.items() if name not in trained}
        examples = cast(float, reply.content.metric_records["metrics"]["num-examples"])
        one = Payload(weights=buffers, numbers={"examples": examples})
        total = one if total is None else weighted_mean(total, one)
    return total.weights if total is not None else {}


def _arrays_of(base: FlowerBase) -> dict[str, Any]:
    """Return the attributes of a strategy that hold arrays, lists of them, or dicts of them: what its rounds change."""

    def holds_arrays(value: Any) -> bool:
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return bool(items) and all(isinstance(item, np.ndarray | np.generic) for item in items)

    return {name: value for name, value in vars(base).items() if holds_arrays(value)}


class _CohortGrid:
    """The grid as a Flower strategy sees it: only the nodes of this round's cohort are there."""

    def __init__(self, federation: Round) -> None:
        self._federation = federation

    def get_node_ids(self) -> list[int]:
        return self._federation.cohort

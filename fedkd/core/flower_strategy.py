"""Any Flower strategy (FedAdam, Krum, ...) as a fedkd strategy: Flower's phases in the core's round loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerBase

from ..data.spec import ANY_KIND, ANY_TASK, Kind, Task
from ..errors import InputError, RunError, described
from ..messages.arrays import Tensors, array_record, tensors_of
from ..messages.merging import weighted_mean
from ..messages.payload import FLOWER_ARRAYS, IMAGES, LOSS, Expected, Payload, like
from .client import Client, GlobalModelClient
from .environment import Environment
from .round import Round
from .strategy import Strategy


def is_flower_strategy(found: Any) -> bool:
    """Return whether this is a strategy class of Flower, and not of fedkd."""
    return isinstance(found, type) and issubclass(found, FlowerBase) and not issubclass(found, Strategy)


@dataclass(kw_only=True)
class FlowerStrategy(Strategy):
    """A strategy of Flower. The core samples the cohort from the run's seed; `cohort` is its size.

    The training phase is Flower's, with the client half `GlobalModelClient`. Flower's evaluation phase is not used,
    because the core evaluates. A checkpoint contains every array and list of arrays that the strategy keeps between
    rounds. Some strategies (FedAdam, FedAvgM, ...) make a step with the mean of the clients' updates. There, buffers
    such as the statistics of batch norm get the weighted mean instead of the step: a step could make variances
    negative.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = GlobalModelClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    base: FlowerBase
    name: str  # its name in the config
    key: str = "strategy"  # its key in the config
    kept: dict[str, Any] = field(default_factory=dict, init=False)  # the base's own attributes that rounds change

    def check(self, environment: Environment) -> None:
        """Raise InputError for options that would sample nodes themselves, or that need more nodes than the cohort."""
        if getattr(self.base, "fraction_train", 1.0) != 1.0:
            raise InputError(f"{self.key}.fraction_train: fedkd samples the nodes of a round; set cohort instead.")
        cohort = environment.config.cohort or environment.data.clients
        for option in ("min_train_nodes", "min_available_nodes"):
            least = getattr(self.base, option, 0)
            if least > cohort:
                raise InputError(
                    f"{self.key}.{option} = {least}: {self.name} would never start, a round has {cohort} nodes."
                )

    def run_round(self, federation: Round) -> None:
        """Send the messages that the Flower strategy writes, and give it the replies to aggregate."""
        assert self.weights is not None
        for attribute, value in self.kept.items():
            setattr(self.base, attribute, value)
        expect = Expected(
            weights=like(self.weights),
            numbers={"num-examples": IMAGES, "train_loss": LOSS},
        )
        grid = cast(Grid, _CohortGrid(federation))
        if hasattr(self.base, "current_arrays"):
            self.base.current_arrays = None  # else FedAvgM would ignore a model that a wrapper has refined
        with self._errors(federation.number):
            messages = list(
                self.base.configure_train(federation.number, array_record(self.weights), ConfigRecord(), grid)
            )
        replies = federation.exchange(messages, expect)
        with self._errors(federation.number):
            arrays, metrics = self.base.aggregate_train(federation.number, replies)
        if arrays is None:
            raise RunError(f"Round {federation.number}: {self.name} returned no model for {len(replies)} replies.")
        old, new = self.weights, tensors_of(arrays)
        if hasattr(self.base, "current_arrays"):
            new |= _mean_buffers(federation, replies)
        # Flower's weighted sums turn the integer counters of batch norm into floats
        self.weights = {name: tensor.to(old[name].dtype) for name, tensor in new.items()}
        self.kept = _arrays_of(self.base)
        if metrics is not None:
            federation.log("train", dict(metrics))

    @contextmanager
    def _errors(self, number: int) -> Iterator[None]:
        """Turn what Flower's strategy raises into a RunError that names it."""
        try:
            yield
        except Exception as error:
            raise RunError(
                f"Round {number}: {self.name} raised {described(error)}; fedkd gives it one model of named arrays from "
                "each node."
            ) from error


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
    """Return the attributes of a strategy that are arrays, lists or dicts of arrays. Its rounds change them."""

    def holds_arrays(value: Any) -> bool:
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return bool(items) and all(isinstance(item, np.ndarray | np.generic) for item in items)

    return {name: value for name, value in vars(base).items() if holds_arrays(value)}


class _CohortGrid:
    """The grid for a Flower strategy: it has only the nodes of this round's cohort."""

    def __init__(self, federation: Round) -> None:
        self._federation = federation

    def get_node_ids(self) -> list[int]:
        return self._federation.cohort

"""Any Flower strategy (FedAdam, Krum, ...) as a fedkd strategy: Flower's phases inside the core's loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerBase

from .client import Client, GlobalModelClient
from .errors import InputError, RunError
from .payload import Expected, Tensors, array_record, like, tensors_of
from .strategy import Round, Strategy

if TYPE_CHECKING:
    from .environment import Environment


def is_flower_strategy(found: Any) -> bool:
    """Return whether this is a strategy class of Flower's, and not one of ours."""
    return isinstance(found, type) and issubclass(found, FlowerBase) and not issubclass(found, Strategy)


class FlowerStrategy(Strategy):
    """A stock Flower strategy. Who takes part is drawn by the core, from the run's seed; `cohort` says how many.

    Its training phase runs as Flower wrote it, with the generic client; its own evaluation phase is not used, since the
    core evaluates. Every array and list of arrays that it keeps between rounds is checkpointed.
    """

    client: ClassVar[type[Client]] = GlobalModelClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True

    def __init__(self, base: FlowerBase, name: str) -> None:
        """Wrap a strategy; `name` is what the config calls it."""
        self.base = base
        self.name = name

    def check(self, environment: Environment) -> None:
        """Refuse options that would draw nodes outside the core, or wait for more than the cohort."""
        if getattr(self.base, "fraction_train", 1.0) != 1.0:
            raise InputError("strategy.fraction_train: the nodes of a round are drawn by fedkd; set cohort instead.")
        cohort = environment.config.cohort or environment.data.clients
        for option in ("min_train_nodes", "min_available_nodes"):
            least = getattr(self.base, option, 0)
            if least > cohort:
                raise InputError(f"strategy.{option} = {least}: {self.name} would wait for ever, a round has {cohort}.")

    def run_round(self, federation: Round) -> None:
        """Let the strategy write this round's messages, and aggregate the replies."""
        assert self.weights is not None
        expect = Expected(
            weights=like(self.weights),
            numbers={"num-examples": (1, math.inf), "train_loss": (-math.inf, math.inf)},
        )
        grid = cast(Grid, _CohortGrid(federation))
        messages = self.base.configure_train(federation.number, array_record(self.weights), ConfigRecord(), grid)
        replies = federation.exchange(messages, expect)
        arrays, metrics = self.base.aggregate_train(federation.number, replies)
        if arrays is None:
            raise RunError(f"Round {federation.number}: {self.name} made no model of {len(replies)} replies.")
        old = self.weights
        # Flower's weighted sums turn the integer counters of batch norm into floats
        self.weights = {name: tensor.to(old[name].dtype) for name, tensor in tensors_of(arrays).items()}
        if metrics is not None:
            federation.log("train", dict(metrics))

    def state(self) -> Tensors:
        """Return the global model and the arrays that the strategy keeps, such as FedAdam's moments."""
        state = {f"weights/{name}": tensor for name, tensor in (self.weights or {}).items()}
        for attribute, value in vars(self.base).items():
            items: Any = value.items() if isinstance(value, dict) else enumerate(value) if _is_arrays(value) else ()
            for key, array in items:
                if isinstance(array, np.ndarray):
                    state[f"base/{attribute}/{key}"] = torch.from_numpy(np.array(array))
        return state

    def restore(self, state: Tensors) -> None:
        """Take back what `state` returned."""
        self.weights = {}
        kept: dict[str, dict[str, np.ndarray]] = {}
        for name, tensor in state.items():
            kind, rest = name.split("/", 1)
            if kind == "weights":
                self.weights[rest] = tensor
            else:
                attribute, key = rest.split("/", 1)
                kept.setdefault(attribute, {})[key] = tensor.numpy()
        for attribute, arrays in kept.items():
            is_list = all(key.isdigit() for key in arrays)
            value = [arrays[key] for key in sorted(arrays, key=int)] if is_list else arrays
            setattr(self.base, attribute, value)


def _is_arrays(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, np.ndarray) for v in value)


class _CohortGrid:
    """The grid as a stock strategy sees it: only the nodes of this round's cohort are there."""

    def __init__(self, federation: Round) -> None:
        self._federation = federation

    def get_node_ids(self) -> list[int]:
        return self._federation.cohort

    def __getattr__(self, name: str) -> Any:
        return getattr(self._federation.grid, name)

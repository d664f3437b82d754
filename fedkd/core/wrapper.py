"""Makes strategies by name. `Wrapper`: a strategy that refines the global model of a base strategy in each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel
from torch import nn

from ..config import Architecture, NamedTable
from ..errors import InputError
from ..messages.arrays import Tensors
from ..registry import find, options
from .client import Client, actions
from .contract import check_class
from .environment import Environment
from .flower_strategy import FlowerStrategy, is_flower_strategy
from .round import Round
from .strategy import Strategy


def make_strategy(table: NamedTable, key: str = "strategy") -> tuple[Strategy, NamedTable]:
    """Return the strategy that a table names, and the table with the values of all options.

    `key`: the table's key in the config. Raises InputError for an unknown name and for wrong options.
    """
    found = find("strategies", table.name, f"{key}.name")
    if is_flower_strategy(found):
        chosen = options(found, table.options, key)
        # its defaults may be functions, which TOML cannot store: keep the table of the config as it is
        return FlowerStrategy(base=found(**chosen), name=table.name, key=key), table
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise InputError(f"{key}.name = {table.name!r} is not a Strategy of fedkd or of Flower.")
    check_class(found)
    chosen = options(found, table.options, key)
    try:
        strategy = found(**chosen)
    except InputError as error:  # the base of a base does not know its full key in the config
        raise InputError(str(error).replace("strategy.base", f"{key}.base", 1)) from error
    kept = {name: getattr(strategy, name, value) for name, value in chosen.items()}
    written = {name: _plain(value) for name, value in kept.items() if value is not None}
    return strategy, NamedTable(name=table.name, **written)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Wrapper(Strategy):
    """A strategy that refines a base which averages weights: `base = { name = ..., ... }`, with the base's options.

    The base runs its own rounds (`self.inner.run_round`), with its own client half. `weights` is the base's global
    model: if a wrapper changes it, the base sends the changed model in the next round.
    """

    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    base: NamedTable
    inner: Strategy = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the base."""
        self.inner, self.base = make_strategy(self.base, "strategy.base")

    @property  # type: ignore[misc]
    def weights(self) -> Tensors | None:
        """Return the base's global model."""
        return self.inner.weights

    @weights.setter
    def weights(self, weights: Tensors | None) -> None:
        self.inner.weights = weights

    def layers(self) -> Sequence[Strategy]:
        """Return this wrapper and the strategies that it wraps, outermost first."""
        return [self, *self.inner.layers()]

    def client_class(self) -> type[Client]:
        """Return the base's client half."""
        return self.inner.client_class()

    def check(self, environment: Environment) -> None:
        """Raise InputError for a base without a global model that clients train, and for the same wrapper twice."""
        below, key = self.inner, "strategy.base"
        if self.inner.pooled and environment.config.data.sites is not None:
            raise InputError(f"data.sites: {self.base.name} needs the sites' images, which the server lacks.")
        while isinstance(below, Wrapper):
            if type(below) is type(self):
                raise InputError(f"{key}.name: one {type(self).__name__} wraps another; remove one of them.")
            below, key = below.inner, f"{key}.base"
        inner = self.inner
        averages = inner.global_model and inner.equal_models and "fit" in actions(inner.client_class())
        if not averages or inner.classifies != self.classifies:
            raise InputError(
                f"strategy.base.name = {self.base.name!r}: the base of {environment.config.strategy.name} must be a "
                "method that averages the weights of equal models which its clients train; docs/methods/index.md lists "
                "these methods."
            )
        self.inner.check(environment)

    def prepare(self, federation: Round) -> None:
        """Call the base's `prepare`."""
        self.inner.prepare(federation)

    def run_round(self, federation: Round) -> None:
        """Call the base's `run_round`."""
        self.inner.run_round(federation)

    def module(self, environment: Environment, architecture: Architecture, weights: Tensors) -> nn.Module:
        """Return the base's module."""
        return self.inner.module(environment, architecture, weights)

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return the intermediate models of the base."""
        return self.inner.stages()

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the base's metrics if it overrides `measure`; otherwise those of the models."""
        below = self.inner
        while isinstance(below, Wrapper) and type(below).measure is Wrapper.measure:
            below = below.inner
        own = type(below).measure is not Strategy.measure
        return self.inner.measure(federation) if own else super().measure(federation)

    def most_images(self, images: int, environment: Environment) -> int:
        """Return the largest number of images that the base allows."""
        return self.inner.most_images(images, environment)

    def initial_weights(self, environment: Environment) -> Tensors:
        """Return the base's first global model."""
        return self.inner.initial_weights(environment)

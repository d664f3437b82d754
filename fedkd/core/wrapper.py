"""Strategies by name, and `Wrapper`: a strategy that refines what a base strategy makes of each round."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel

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
    """Return the strategy that a table names, and the table with all options written out.

    `key`: where the table stands in the config. Raises InputError for an unknown name and for wrong options.
    """
    found = find("strategies", table.name, f"{key}.name")
    if is_flower_strategy(found):
        chosen = options(found, table.options, key)
        # its defaults may be functions: what is written out is what the config gives
        return FlowerStrategy(base=found(**chosen), name=table.name, key=key), table
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise InputError(f"{key}.name = {table.name!r} is no Strategy, of fedkd or of Flower.")
    check_class(found)
    chosen = options(found, table.options, key)
    try:
        strategy = found(**chosen)
    except InputError as error:  # of a base within a base, which does not know its place in the config
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
    """A strategy over a base that averages weights: `base = { name = ..., ... }`, with the base's own options.

    The base runs its own rounds (`self.inner.run_round`), with its own client half; `weights` is the base's global
    model: what a wrapper puts there is what the base sends down in the next round.
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
        """Return this wrapper and what it wraps, outermost first."""
        return [self, *self.inner.layers()]

    def client_class(self) -> type[Client]:
        """Return the base's client half."""
        return self.inner.client_class()

    def check(self, environment: Environment) -> None:
        """Refuse a base that has no global model which clients train, and a wrapper twice over."""
        below, key = self.inner, "strategy.base"
        if self.inner.pooled and environment.config.data.sites is not None:
            raise InputError(f"data.sites: {self.base.name} needs the sites' images, which the server lacks.")
        while isinstance(below, Wrapper):
            if type(below) is type(self):
                raise InputError(f"{key}.name: one {type(self).__name__} stands below another; one is enough.")
            below, key = below.inner, f"{key}.base"
        inner = self.inner
        averages = inner.global_model and inner.equal_models and "fit" in actions(inner.client_class())
        if not averages or inner.classifies != self.classifies:
            raise InputError(
                f"strategy.base.name = {self.base.name!r}: {environment.config.strategy.name} goes over a method that "
                "averages the weights of equal models which its clients train; docs/methods/index.md says which do."
            )
        self.inner.check(environment)

    def prepare(self, federation: Round) -> None:
        """Let the base prepare."""
        self.inner.prepare(federation)

    def run_round(self, federation: Round) -> None:
        """Let the base run its round."""
        self.inner.run_round(federation)

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return the base's."""
        return self.inner.stages()

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the base's metrics, where it measures in a way of its own; else those of the models."""
        below = self.inner
        while isinstance(below, Wrapper) and type(below).measure is Wrapper.measure:
            below = below.inner
        own = type(below).measure is not Strategy.measure
        return self.inner.measure(federation) if own else super().measure(federation)

    def most_images(self, images: int, environment: Environment) -> int:
        """Return the base's."""
        return self.inner.most_images(images, environment)

    def initial_weights(self, environment: Environment) -> Tensors:
        """Return the base's."""
        return self.inner.initial_weights(environment)

"""A run file: one pydantic model for the whole of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from .data import DataConfig
from .tables import Count, Fraction, Kind, Limits, NamedTable, Probability, Table


class Sgd(Table):
    """Stochastic gradient descent, as torch.optim.SGD."""

    name: Literal["sgd"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Adam(Table):
    """Adam, or AdamW with decoupled weight decay, as in torch.optim."""

    name: Literal["adam", "adamw"]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class TrainConfig(Table):
    """`[train]`: local training. A client starts each round with a fresh optimiser."""

    epochs: Count = 1
    steps: Count | None = None  # exactly so many batches instead of whole epochs
    batch_size: Count = 32
    optimizer: Annotated[Sgd | Adam, Field(discriminator="name")] = Sgd(name="sgd", lr=0.05)
    lr_decay: Fraction = 1.0  # the learning rate of round t is lr * lr_decay^(t - 1)
    clip: Annotated[float, Field(gt=0)] | None = None  # largest norm of a step's gradient, weight decay apart

    def decay(self, number: int) -> float:
        """Return what a round's learning rates are multiplied by."""
        return self.lr_decay ** max(number - 1, 0)

    def in_round(self, number: int) -> TrainConfig:
        """Return the settings with the learning rate of a round."""
        rate = self.optimizer.lr * self.decay(number)
        return self.model_copy(update={"optimizer": self.optimizer.model_copy(update={"lr": rate})})

    def batches(self, images: int) -> int:
        """Return how many steps local training on so many images takes."""
        return self.steps or self.epochs * -(-images // self.batch_size)


class EvaluateConfig(Table):
    """`[evaluate]`: every so many rounds (and after the last), on this share of the nodes."""

    every: Count = 5
    fraction: Fraction | None = None  # by default all nodes, of a large federation a hundred


class FaultsConfig(Table):
    """`[faults]`: what goes wrong in a simulation, drawn by the run's seed, with these probabilities."""

    dropout: Probability = 0.0  # a node is away for a whole round
    straggler: Probability = 0.0  # a node takes longer for a request, by simulated seconds
    delay: Annotated[float, Field(gt=0)] = 60.0  # their mean (an exponential distribution); `timeout` decides
    error: Probability = 0.0  # a client raises before it has done anything
    corrupted: Probability = 0.0  # a reply arrives with a NaN, in another shape, or with the claim to be huge
    lost: Probability = 0.0  # a client does its work, and its reply never arrives


class CheckpointConfig(Table):
    """`[checkpoint]`: every so many rounds (and after the last); the newest `keep` stay."""

    every: Count = 10
    keep: Count = 2  # the one before is used where the newest is damaged


class ModelConfig(Table):
    """`[model]`: one architecture for all, or several that the nodes take in turn; with options of the builder."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, protected_namespaces=())
    name: str | None = None
    names: Annotated[list[NamedTable], Field(min_length=1)] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> ModelConfig:
        if (self.name is None) == (self.names is None):
            raise ValueError("set either name (one architecture) or names (several)")
        if self.names is not None and self.model_extra:
            key = next(iter(self.model_extra))
            raise ValueError(f"{key} belongs to one architecture: names = [{{ name = ..., {key} = ... }}, ...]")
        return self

    @property
    def architectures(self) -> list[NamedTable]:
        """Return the architectures; node i has number i modulo their count."""
        return list(self.names or [NamedTable(name=str(self.name), **(self.model_extra or {}))])


class Config(Table):
    """A whole run."""

    seed: Annotated[int, Field(ge=0)] = 0
    rounds: Count = 10
    cohort: Count | None = None  # nodes a round, drawn anew each round; all by default
    min_replies: Count = 1  # fewer good replies than this to one request end the run
    timeout: Annotated[float, Field(gt=0)] | None = None  # seconds to wait for the replies to one request
    payload_limit: Count = 2**30  # bytes of one message
    payload_limits: dict[Kind, Count] = Field(default_factory=dict)  # of them, bytes of one kind of arrays
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    strategy: NamedTable
    engine: NamedTable = NamedTable(name="inline")
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    trackers: list[NamedTable] = Field(default_factory=list)  # services that hear of each round

    @pydantic.model_validator(mode="after")
    def _simulated_faults(self) -> Config:
        if self.data.sites is not None and self.faults != FaultsConfig():
            raise ValueError("faults are of a simulation; data.sites are real sites, with faults of their own")
        return self

    @property
    def limits(self) -> Limits:
        """Return the bytes that one message may have."""
        return Limits(self.payload_limit, {kind: limit for kind, limit in self.payload_limits.items()})

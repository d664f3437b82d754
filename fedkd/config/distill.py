"""The file of a distillation of one named set: `fedkd distill`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .data import SetsConfig
from .run import CheckpointConfig, ModelConfig, Sgd, TrainConfig
from .tables import GROUPS, Count, Group, NamedTable, Table


class SetConfig(SetsConfig):
    """`[data]` of a distillation: one named set."""

    name: str


class ProbeConfig(Table):
    """`[evaluate]` of a distillation: every so many iterations (and first and last), fresh networks train on it."""

    every: Count = 500
    networks: Count = 3
    epochs: Count = 300  # the learning rate falls to a tenth after half of them
    batch_size: Count = 256
    optimizer: Sgd = Sgd(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    augment: list[Group] = Field(default_factory=lambda: list(GROUPS))


class DistillConfig(Table):
    """A whole distillation of one set: `fedkd distill`."""

    seed: Annotated[int, Field(ge=0)] = 0
    iterations: Annotated[int, Field(ge=0)] = 1000  # 0: measure how the images start
    ipc: Count = 10  # virtual images a class
    initial: Literal["real", "normal", "noise"] = "real"  # random real images, FedLGD's class statistics, or N(0, 1)
    data: SetConfig
    model: ModelConfig
    distiller: NamedTable
    network_every: Count = 100  # of distillers that want a trained network: iterations between two states of it
    train: TrainConfig = TrainConfig(optimizer=Sgd(name="sgd", lr=0.01))  # how that network is trained between them
    evaluate: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=100)

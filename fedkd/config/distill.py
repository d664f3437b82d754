"""The config file of `fedkd distill`, which distils one named set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .data import SetsConfig
from .run import CheckpointConfig, ModelConfig, Sgd, TrainConfig
from .tables import GROUPS, AnyGroup, Count, NamedTable, Table


class SetConfig(SetsConfig):
    """`[data]` of a distillation: one named set."""

    name: str


def _every_group() -> list[AnyGroup]:
    return list(GROUPS)


class ProbeConfig(Table):
    """`[evaluate]` of a distillation: after every `every` iterations, at the start and at the end, new networks are
    trained on the virtual images.
    """

    every: Count = 500
    networks: Count = 3
    epochs: Count = 300  # after half of them the learning rate falls to a tenth
    batch_size: Count = 256
    optimizer: Sgd = Sgd(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    # groups; of other kinds than images: all of the kind. dc: each image has a crop, scale or rotation of DC's code
    augment: list[AnyGroup] | Literal["dc"] = Field(default_factory=_every_group)


class DistillConfig(Table):
    """The whole config of a distillation of one set: `fedkd distill`."""

    seed: Annotated[int, Field(ge=0)] = 0
    iterations: Annotated[int, Field(ge=0)] = 1000  # 0: only measure the initial images
    ipc: Count = 10  # images per class
    initial: Literal["real", "normal", "noise"] = "real"  # random real images, FedLGD's class statistics, or N(0, 1)
    data: SetConfig
    model: ModelConfig
    distiller: NamedTable
    network_every: Count = 100  # for distillers that use a trained network: iterations between its training phases
    train: TrainConfig = TrainConfig(optimizer=Sgd(name="sgd", lr=0.01))  # the training of this network in each phase
    evaluate: ProbeConfig = ProbeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every=100)

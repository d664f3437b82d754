"""Local training by hand, in float64 and without an optimiser, for second formulas of whole rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd import Environment
from fedkd.config import Config
from fedkd.learning.batches import batches
from fedkd.streams import torch_stream
from helpers import Make, lines, server_state

Extra = Callable[[Tensor, Tensor], Tensor | float]  # of images and labels, to the loss


UNEQUAL = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}


def gradient(
    model: torch.nn.Module, x: Tensor, y: Tensor, extra: Callable[[Tensor, Tensor], Tensor | float]
) -> dict[str, np.ndarray]:
    model.zero_grad()
    (F.nll_loss(F.log_softmax(model(x.double()), 1), y) + extra(x.double(), y)).backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


class Hand:
    """Local training in float64 by explicit steps; `move(name, gradient, weights)` is a step's direction."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.environment = Environment(config)
        self.model = self.environment.model(0).double()
        self.data = self.environment.data

    def start(self) -> dict[str, np.ndarray]:
        return {name: tensor.double().numpy() for name, tensor in self.environment.initial_weights().items()}

    def cohort(self, number: int, folder: Path) -> list[int]:
        return lines(folder)[number]["cohort"]

    def train(
        self,
        number: int,
        node: int,
        weights: dict[str, np.ndarray],
        move: Callable[..., np.ndarray],
        extra: Extra = lambda x, y: 0.0,
    ) -> tuple[dict[str, np.ndarray], int]:
        settings = self.config.train
        weights, data = {name: value.copy() for name, value in weights.items()}, self.data.train_of(node)
        order = torch_stream(self.config.seed, number, node, "fit/local-training")
        rate, steps = settings.optimizer.lr * settings.lr_decay ** (number - 1), 0
        while True:
            labels = torch.from_numpy(data.labels)
            for x, y in batches(data, labels, settings.batch_size, self.environment.preprocess, order):
                self.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
                for name, g in gradient(self.model, x, y, extra).items():
                    weights[name] -= rate * move(name, g, weights[name])
                steps += 1
                if settings.steps == steps:
                    return weights, steps
            if settings.steps is None and steps == settings.epochs * math.ceil(len(data.labels) / settings.batch_size):
                return weights, steps


def setting(tiny: Make, strategy: dict[str, Any], **changes: Any) -> Config:
    train = {"epochs": 2, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_decay": 0.8}
    return tiny({"strategy": strategy, "data.partition": UNEQUAL, "train": train, "rounds": 3, "cohort": 3,
                 "data.train_per_class": 40, "checkpoint": {"every": 1, "keep": 9}, **changes})  # fmt: skip


def close(folder: Path, right: dict[str, np.ndarray], part: str = "weights") -> None:
    found = server_state(folder)[part]
    for name, value in right.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=3e-5, err_msg=name)

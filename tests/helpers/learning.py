"""Optimisers and batches in float64, for tests that compare stacked clients with clients alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.config import Adam, Sgd
from fedkd.learning.batches import Preprocess

SGD = Sgd(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAMW = Adam(name="adamw", lr=1e-3, weight_decay=1e-2)


class Pixels:
    """The statistics of a data set."""

    mean, deviation = (0.3,), (0.4,)


class Exact(Preprocess):
    """Batches in float64."""

    def __init__(self, augment: str) -> None:
        super().__init__(Pixels(), augment, torch.device("cpu"))  # type: ignore[arg-type]
        self.mean, self.deviation = self.mean.double(), self.deviation.double()

    def scaled(self, images: Tensor) -> Tensor:
        return self.normalise(images.double().div_(255))

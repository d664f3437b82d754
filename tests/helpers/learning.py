"""Models, batches and local trainings in float64, for tests that compare stacked clients with clients alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.config import Adam, Sgd
from fedkd.data.samples import Samples
from fedkd.data.spec import Form
from fedkd.learning.batches import Preprocess
from fedkd.learning.training import LocalTraining
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream

from .codecs import pixel_codec

SGD = Sgd(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4)
ADAMW = Adam(name="adamw", lr=1e-3, weight_decay=1e-2)
SIZES = (40, 26, 33, 12)  # batches of 16, the last ones of other sizes; client 3 has less than one batch
CLASSES = 10


PIXELS = pixel_codec(0.3, 0.4)


class Exact(Preprocess):
    """Batches in float64."""

    def __init__(self, augment: str) -> None:
        super().__init__(PIXELS, augment, torch.device("cpu"))

    def scaled(self, images: Tensor) -> Tensor:
        return images.double().div_(255).sub_(0.3).div_(0.4)


def model_of(name: str, side: int = 12, **options: Any) -> nn.Module:
    with default_stream(torch_stream(0, 0, 0, "model")):
        return build(name, options, Form("image", (1, side, side)), CLASSES).double()


def clients(
    model: nn.Module, *, sizes: tuple[int, ...] = SIZES, augment: str = "none", wanted: str = "labels", side: int = 12,
    loss: Callable[[int, nn.Module], Any] | None = None, **changes: Any,
) -> list[LocalTraining]:  # fmt: skip
    """Return the local training of each client, with streams at their beginning."""
    draw, made = np.random.default_rng(0), []
    for k, size in enumerate(sizes):
        data = Samples(draw.integers(0, 256, (size, 1, side, side), dtype=np.uint8), draw.integers(0, CLASSES, size))
        targets = torch.from_numpy(data.labels)
        if wanted != "labels":
            targets = torch.softmax(torch.from_numpy(draw.normal(size=(size, CLASSES))), 1)
        if wanted == "both":
            targets = torch.cat([targets, torch.from_numpy(data.labels).double()[:, None]], 1)
        given = {"epochs": 2, "batch_size": 16, "optimizer": SGD} | changes
        if loss is not None:
            given["loss"] = loss(k, model)
        order = torch_stream(0, 1, k, "order")
        made.append(LocalTraining(model, data, targets, preprocess=Exact(augment), order=order, **given))
    return made

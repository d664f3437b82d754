"""Prediction and evaluation, in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.images import Images
from .batches import Preprocess, batches

_PREDICTION_BATCH = 500


@torch.no_grad()
def predict(model: nn.Module, data: Images, preprocess: Preprocess) -> Tensor:
    """Return the logits of all images in their order, N x C, on the CPU, in eval mode."""
    model.eval()
    labels = torch.from_numpy(data.labels)
    return torch.cat([model(images).cpu() for images, _ in batches(data, labels, _PREDICTION_BATCH, preprocess)])


@torch.no_grad()
def features(model: nn.Module, data: Images, preprocess: Preprocess) -> Tensor:
    """Return the features of all images in their order, N x D, on the CPU, in eval mode."""
    model.eval()
    labels = torch.from_numpy(data.labels)
    extract = cast(Callable[[Tensor], Tensor], model.features)
    return torch.cat([extract(images).cpu() for images, _ in batches(data, labels, _PREDICTION_BATCH, preprocess)])


def evaluate(model: nn.Module, data: Images, preprocess: Preprocess) -> dict[str, float]:
    """Return `accuracy` (a fraction) and `loss` (mean cross-entropy) of a model in eval mode."""
    logits, labels = predict(model, data, preprocess), torch.from_numpy(data.labels)
    correct = int((logits.argmax(1) == labels).sum())
    return {
        "accuracy": correct / len(labels),
        "loss": float(F.cross_entropy(logits.double(), labels)),
    }

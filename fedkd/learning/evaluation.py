"""Prediction and evaluation, in eval mode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.samples import Samples
from .batches import Preprocess, batches
from .training import features_of

_PREDICTION_BATCH = 500


@dataclass(frozen=True)
class Prediction:
    """What a model is asked for: its logits, N x C, or its features, N x D, of all images in their order."""

    model: nn.Module
    data: Samples
    preprocess: Preprocess
    features: bool = False

    def alone(self) -> Tensor:
        """Return the result of `predict_alone`."""
        return predict_alone(self)


@torch.no_grad()
def predict_alone(asked: Prediction) -> Tensor:
    """Return what is asked of one model, on the CPU, in eval mode."""
    model, data = asked.model.eval(), asked.data
    labels = torch.from_numpy(data.labels)
    parts = batches(data, labels, _PREDICTION_BATCH, asked.preprocess)
    return torch.cat([(features_of(model, x) if asked.features else model(x)).cpu() for x, _ in parts])


def predict(model: nn.Module, data: Samples, preprocess: Preprocess) -> Tensor:
    """Return the logits of all images in their order, N x C, on the CPU, in eval mode."""
    return predict_alone(Prediction(model, data, preprocess))


def features(model: nn.Module, data: Samples, preprocess: Preprocess) -> Tensor:
    """Return the features of all images in their order, N x D, on the CPU, in eval mode."""
    return predict_alone(Prediction(model, data, preprocess, features=True))


def evaluate(model: nn.Module, data: Samples, preprocess: Preprocess) -> dict[str, float]:
    """Return `accuracy` (a fraction) and `loss` (mean cross-entropy) of a model in eval mode."""
    return measured(predict(model, data, preprocess), data)


def measured(logits: Tensor, data: Samples) -> dict[str, float]:
    """Return `accuracy` (a fraction) and `loss` (mean cross-entropy) of logits of labelled images, N x C."""
    labels = torch.from_numpy(data.labels)
    correct = int((logits.argmax(1) == labels).sum())
    return {
        "accuracy": correct / len(labels),
        "loss": float(F.cross_entropy(logits.double(), labels)),
    }

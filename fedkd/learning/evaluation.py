"""Prediction and evaluation, in eval mode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.codec import Codec
from ..data.samples import Samples
from .batches import Preprocess, batches
from .training import LOSSES, Outputs, features_of

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
    """Return what `measured` does of a model in eval mode."""
    return measured(predict(model, data, preprocess), data, preprocess.codec)


def measured(outputs: Tensor, data: Samples, codec: Codec) -> dict[str, float]:
    """Return the metrics of a model's outputs on labelled samples, N x C, and `loss`, as in training.

    Of classes: `accuracy`, a fraction. Of several labels: `macro_f1` (a label is predicted if its logit is above 0),
    which counts 0 for a label that is never right. Of targets, in their units: `mse`, `mae`, and `r2` if there are two
    samples or more; each is the mean over the targets.
    """
    task = codec.spec.task
    if task == "classification":
        labels = torch.from_numpy(data.labels)
        correct = int((outputs.argmax(1) == labels).sum())
        return {"accuracy": correct / len(labels), "loss": float(F.cross_entropy(outputs.double(), labels))}
    targets = torch.from_numpy(codec.targets(data.labels)).double()
    found = Outputs(outputs.double(), outputs.new_empty(0), lambda features: features)
    loss = float(LOSSES[task](found, targets, {}, {}))
    if task == "multilabel":
        return {"macro_f1": macro_f1(outputs.numpy() > 0, data.labels > 0), "loss": loss}
    return regression_metrics(codec.predictions(outputs.numpy()), data.labels) | {"loss": loss}


def macro_f1(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean F1 over labels, of predictions and labels, N x C, true or false; 0 / 0 counts as 0."""
    right, all_ = (predicted & wanted).sum(0), predicted.sum(0) + wanted.sum(0)
    return float((2 * right / np.maximum(all_, 1)).mean())


def regression_metrics(predicted: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Return `mse`, `mae`, and with two samples or more `r2`, of predictions and targets, N x T, as means over targets.

    R2 = 1 - sum (y - p)^2 / sum (y - mean y)^2; of equal targets it is 1 if all are right, else 0.
    """
    squared = np.square(predicted - wanted)
    found = {"mse": float(squared.mean()), "mae": float(np.abs(predicted - wanted).mean())}
    if len(wanted) < 2:
        return found
    left, whole = squared.sum(0), np.square(wanted - wanted.mean(0)).sum(0)
    differ = (wanted != wanted[0]).any(0)  # the mean of equal values may be rounded
    shares = np.where(differ, left / np.where(differ, whole, 1), left > 0)
    return found | {"r2": float((1 - shares).mean())}

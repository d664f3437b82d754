"""Predictions keep their order, and evaluation counts right."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from helpers.linear import PLAIN, images, model

from fedkd.data.codec import Codec
from fedkd.data.samples import Samples
from fedkd.data.spec import DataSpec, Task
from fedkd.learning.evaluation import evaluate, macro_f1, measured, predict, regression_metrics


@pytest.fixture(autouse=True)
def _restore_streams() -> object:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)  # nn.Linear above draws from it before it is overwritten


def test_predictions_keep_the_order_and_evaluation_counts_right() -> None:
    data, net = images(1203), model()
    logits = predict(net, data, PLAIN)
    x = torch.from_numpy((data.inputs.reshape(1203, -1) / 255 - 0.25) / 0.5).float()
    torch.testing.assert_close(logits, net[1](x).detach())
    scores = evaluate(net, data, PLAIN)
    assert scores["accuracy"] == (logits.argmax(1).numpy() == data.labels).sum() / 1203
    right = -torch.log_softmax(logits.double(), 1)[torch.arange(1203), torch.from_numpy(data.labels)].mean().item()
    assert scores["loss"] == pytest.approx(right, rel=1e-12)


def wave(shape: tuple[int, ...], f: float, p: float, a: float = 1.0) -> np.ndarray:
    return a * np.sin(f * np.arange(np.prod(shape)) + p).reshape(shape)


def test_macro_f1_counts_a_class_that_is_never_right_as_0() -> None:
    wanted, predicted = np.array([0, 1, 2, 2, 0, 1, 4, 4, 0, 2]), wave((10, 5), 0.83, 0.2, 2).argmax(1)
    both = (np.eye(5, dtype=bool)[predicted], np.eye(5, dtype=bool)[wanted])
    assert macro_f1(*both) == pytest.approx(0.26095238, abs=1e-8)
    known = sklearn.metrics.f1_score(both[1], both[0], average="macro", zero_division=0)
    assert macro_f1(*both) == pytest.approx(known, rel=1e-12)


def test_errors_of_targets() -> None:
    wanted, predicted = wave((8, 2), 0.37, 0.1, 3), wave((8, 2), 0.37, 0.3, 3) + wave((8, 2), 0.9, 0.4, 0.5)
    found = regression_metrics(predicted, wanted)
    assert found == pytest.approx({"mse": 0.36386483, "mae": 0.52820794, "r2": 0.92321525}, abs=1e-8)
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(wanted, predicted), rel=1e-12)
    wanted[:, 1] = 2.0  # of equal targets: 1 if all are right, else 0
    predicted[:, 1] = 2.0
    assert regression_metrics(predicted, wanted)["r2"] == pytest.approx(sklearn.metrics.r2_score(wanted, predicted))
    assert "r2" not in regression_metrics(predicted[:1], wanted[:1])
    rounded = np.full((300, 1), 0.1)
    assert regression_metrics(rounded + 1e-9, rounded)["r2"] == 0
    assert regression_metrics(rounded, rounded)["r2"] == 1


def codec_of(task: Task, **targets: np.ndarray) -> Codec:
    return Codec(DataSpec(kind="array", shape=(2,), task=task), np.zeros(1), np.ones(1), **targets)


def test_metrics_of_targets_are_in_their_units_and_the_loss_is_not() -> None:
    codec = codec_of("regression", target_mean=np.array([100.0]), target_deviation=np.array([10.0]))
    labels = np.array([[90.0], [100.0], [120.0]])
    data = Samples(np.zeros((3, 2), np.float32), labels)
    found = measured(torch.tensor([[-1.0], [0.5], [2.0]]), data, codec)
    assert found == pytest.approx({"mse": 25 / 3, "mae": 5 / 3, "r2": 1 - 25 / 466.6666667, "loss": 0.25 / 3})


def test_metrics_of_several_labels() -> None:
    labels = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    outputs = torch.tensor([[2.0, -1.0], [1.0, -1.0], [-1.0, -3.0]])
    found = measured(outputs, Samples(np.zeros((3, 2), np.float32), labels), codec_of("multilabel"))
    cells = [np.log1p(np.exp(-x if y else x)) for x, y in zip(outputs.flatten().tolist(), labels.ravel(), strict=True)]
    assert found == pytest.approx({"macro_f1": (0.5 + 0) / 2, "loss": np.mean(cells)}, rel=1e-6)

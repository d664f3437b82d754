"""Predictions keep their order, and evaluation counts right."""

from __future__ import annotations

import pytest
import torch
from helpers.linear import PLAIN, images, model

from fedkd.learning.evaluation import evaluate, predict


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

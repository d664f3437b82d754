"""MoCo: its loss by loops, and its queue."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Make
from helpers.self_supervised import ALONE, published, started
from torch.nn import functional as F

from fedkd.strategies.byol import prediction_loss
from fedkd.strategies.moco import KEYS, queue_loss


def test_the_losses_of_moco_and_byol_by_loops() -> None:
    x1, x2, xa = (F.normalize(x.double(), dim=1) for x in published())
    total = 0.0
    for q, k in zip(x1, x2, strict=True):
        logits = [float(q @ k) / 0.2, *(float(q @ old) / 0.2 for old in xa)]
        total -= (logits[0] - math.log(sum(math.exp(z) for z in logits))) / 8
    assert float(queue_loss(x1, x2, xa, 0.2)) == pytest.approx(total, rel=1e-9)
    total = sum(float(((a / a.norm() - b / b.norm()) ** 2).sum()) for a, b in zip(x1, 3 * x2, strict=True)) / 8
    assert float(prediction_loss(x1, 3 * x2)) == pytest.approx(total, rel=1e-9)  # |q - z|^2 = 2 - 2 cos


def test_mocos_queue_is_first_in_first_out_and_its_keys_lag(tiny: Make) -> None:
    client, encoder, batch = started(tiny, {**ALONE["moco"], "queue": 20, "momentum": 0.75})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1)
    old, before = client.kept["queue"].clone(), [p.clone() for p in client.networks[KEYS].parameters()]
    client.loss()(client.networks, batch, client.kept)
    for key, start, now in zip(client.networks[KEYS].parameters(), before, encoder.parameters(), strict=True):
        torch.testing.assert_close(key, 0.75 * start + 0.25 * now.detach())
    queue = client.kept["queue"]
    assert queue.shape == (20, 16)
    assert torch.equal(queue[16:], old[:4])
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(20))

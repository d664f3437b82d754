"""Probes: the linear one of the published protocol, nearest neighbours, angles of drift."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedkd.learning.probes import linear_probe, mean_angle, nearest_neighbours
from fedkd.streams import torch_stream


def test_the_linear_probe_is_the_published_protocol() -> None:
    stream = torch_stream(0, 0, 0, "features")
    features, labels = torch.randn(150, 5, generator=stream), torch.arange(150) % 3
    features[:, 0] += 3 * (labels == 1)
    features[:, 1] += 3 * (labels == 2)
    found = linear_probe(features, labels, features, labels, 3, torch_stream(0, 0, 0, "probe"), epochs=3)
    order = torch_stream(0, 0, 0, "probe")
    with torch.random.fork_rng():
        torch.set_rng_state(order.get_state())
        linear = nn.Linear(5, 3)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (weight, bias)]
    step = 0
    for _ in range(3):
        for chosen in torch.randperm(150, generator=order).split(64):
            p = torch.softmax(features[chosen] @ weight.T + bias, 1) - F.one_hot(labels[chosen], 3)
            step += 1
            for parameter, g, moment in zip(
                (weight, bias), (p.T @ features[chosen] / len(chosen), p.mean(0)), moments, strict=True
            ):
                g = g + 1e-6 * parameter
                moment[0] = 0.9 * moment[0] + 0.1 * g
                moment[1] = 0.999 * moment[1] + 0.001 * g**2
                rate = 1e-3 / (1 - 0.9**step)
                parameter -= rate * moment[0] / ((moment[1] / (1 - 0.999**step)).sqrt() + 1e-8)
    right = ((features @ weight.T + bias).argmax(1) == labels).double().mean()
    assert found == pytest.approx(float(right), abs=1 / 150)


def test_nearest_neighbours_vote_by_cosine() -> None:
    stream = torch_stream(0, 0, 0, "features")
    bank, labels = torch.randn(30, 4, generator=stream).double(), torch.arange(30) % 3
    test, wanted = torch.randn(20, 4, generator=stream).double(), torch.arange(20) % 3
    right = 0
    for row, label in zip(test, wanted.tolist(), strict=True):
        cosines = sorted(
            ((float(row @ b / (row.norm() * b.norm())), int(y)) for b, y in zip(bank, labels, strict=True)),
            reverse=True,
        )[:7]
        votes = [sum(math.exp(c / 0.1) for c, y in cosines if y == k) for k in range(3)]
        right += votes.index(max(votes)) == label
    assert nearest_neighbours(bank, labels, test, wanted, 3, neighbours=7) == pytest.approx(right / 20)
    assert nearest_neighbours(bank, labels, bank, labels, 3, neighbours=1) == 1.0


def test_the_angle_is_in_degrees() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]])
    b = torch.tensor([[0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]])
    assert mean_angle(a, b) == pytest.approx((90 + 180 + 0) / 3, abs=1e-4)


def test_the_defaults_are_the_published_protocols() -> None:
    """FedX's code for the linear probe (section 4 of the specification); FedU2's for the neighbours (ibid.)."""
    assert linear_probe.__kwdefaults__ == {"epochs": 100, "batch_size": 64, "lr": 1e-3, "weight_decay": 1e-6}
    assert nearest_neighbours.__kwdefaults__ == {"neighbours": 200, "temperature": 0.1}


def test_more_than_500_images_are_all_asked_about() -> None:
    bank, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    test = bank.repeat(251, 1)[:501]
    wanted = labels.repeat(251)[:501]
    wanted[[3, 500]] = torch.tensor([0, 1])  # both wrong
    assert nearest_neighbours(bank, labels, test, wanted, 2, neighbours=1) == 499 / 501


def test_cosines_that_rounding_puts_beyond_1_have_an_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = torch.tensor([1 + 1e-9, -1 - 1e-9], dtype=torch.float64)
    monkeypatch.setattr(F, "cosine_similarity", lambda first, second, dim: beyond)
    assert mean_angle(torch.ones(2, 2), torch.ones(2, 2)) == pytest.approx(90.0)

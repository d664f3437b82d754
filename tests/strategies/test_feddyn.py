"""FedDyn: whole rounds by the paper's formulas."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import Make
from helpers.hand import Hand, close, setting
from torch import nn

from fedkd import Environment, InputError, Payload
from fedkd.runs.run import run
from fedkd.strategies.feddyn import FedDyn, dynamic_loss


@pytest.mark.parametrize("official", [False, True])
def test_three_rounds_of_feddyn_are_the_papers_formulas(tiny: Make, tmp_path: Path, official: bool) -> None:
    """By the paper's own variables: lambda_k = grad L_k, h; not by the sums of moves that our code keeps."""
    config = setting(tiny, {"name": "feddyn", "alpha": 0.3, "official_quirks": official})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w, nodes = hand.start(), range(6)
    sizes = [len(hand.data.train_of(k).labels) for k in nodes]
    alphas = [0.3 / (n * 6 / sum(sizes) if official else 1.0) for n in sizes]
    slopes = [{name: np.zeros_like(v) for name, v in w.items()} for _ in nodes]
    moves = {name: np.zeros_like(v) for name, v in w.items()}  # sum over all clients and rounds of theta_k - w
    for number in (1, 2, 3):
        cohort, models = hand.cohort(number, tmp_path / "run"), []
        for k in cohort:
            a, slope = alphas[k], slopes[k]
            theta, _ = hand.train(number, k, w, lambda n, g, v, a=a, s=slope, w=w: g - s[n] + a * (v - w[n]))
            slopes[k] = {n: slope[n] - a * (theta[n] - w[n]) for n in w}
            models.append(theta)
        moves = {n: moves[n] + sum(theta[n] - w[n] for theta in models) for n in w}
        w = {n: sum(theta[n] for theta in models) / len(models) + moves[n] / 6 for n in w}
    close(tmp_path / "run", w)


@pytest.mark.parametrize(
    ("official", "optimizer", "taken"),
    [
        (False, {"name": "adamw"}, True),
        (True, {"name": "adamw"}, False),
        (True, {"name": "adam"}, True),
        (True, {"name": "sgd", "lr": 0.1, "momentum": 0.9}, True),
    ],
)
def test_weight_decay_must_be_part_of_the_gradient(
    tiny: Make, official: bool, optimizer: dict[str, Any], taken: bool
) -> None:
    environment = Environment(tiny({"train.optimizer": optimizer}))
    with contextlib.nullcontext() if taken else pytest.raises(InputError, match="^strategy.official_quirks: it adds"):
        FedDyn(official_quirks=official).check(environment)


def test_the_objective_has_its_quadratic_term_unless_weight_decay_is_it() -> None:
    model = nn.Linear(2, 1, bias=False, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 3.0]]))
    start, drift = {"weight": torch.tensor([[0.0, 1.0]])}, {"weight": torch.tensor([[2.0, 0.5]])}
    images, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)  # one class: the cross-entropy is 0
    quadratic = 0.1 * ((1 + 4) / 2 + (1 * 2 + 3 * 0.5))
    assert float(dynamic_loss(start, drift, 0.1)(model, images, labels).detach()) == pytest.approx(quadratic)
    linear = 0.1 * (1 * (2 - 0) + 3 * (0.5 - 1))
    found = dynamic_loss(start, drift, 0.1, linear_only=True)(model, images, labels)
    assert float(found.detach()) == pytest.approx(linear)


def test_the_drift_of_absent_nodes_stays_and_buffers_have_none() -> None:
    """w = 1, the mean of the models 5, of 6 of 8 nodes: h = 0.5 + 6/8 (5 - 1), and w = 5 + h."""
    merged = Payload(
        weights={"w": torch.tensor([5.0]), "buffer": torch.tensor([9.0])}, numbers={"examples": 6.0, "loss": 0.75}
    )
    federation = Mock(ask=Mock(return_value=merged), nodes=range(8))
    method = FedDyn()
    method.weights = {"w": torch.tensor([1.0]), "buffer": torch.tensor([1.0])}
    method.mean_drift = {"w": torch.tensor([0.5])}
    method.run_round(federation)
    assert (method.mean_drift["w"].item(), method.weights["w"].item(), method.weights["buffer"].item()) == (
        3.5,
        8.5,
        9.0,
    )
    assert federation.ask.call_args.kwargs["expect"].numbers == {"examples": (1.0, 1.0), "loss": (-3.4e38, 3.4e38)}
    federation.log.assert_called_once_with("train_loss", 0.75)

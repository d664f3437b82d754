"""SCAFFOLD: whole rounds by the paper's formulas, and the anchor of the official code."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import Make, server_state
from helpers.bases import SMALL
from helpers.hand import Hand, close, setting

from fedkd import Environment, InputError, Payload
from fedkd.runs.run import run
from fedkd.strategies.scaffold import Scaffold


@pytest.mark.parametrize("official", [False, True])
def test_three_rounds_of_scaffold_are_the_papers_formulas(tiny: Make, tmp_path: Path, official: bool) -> None:
    strategy = {"name": "scaffold", "official_quirks": official, "server_lr": 1.0 if official else 0.7}
    config = setting(tiny, strategy)
    if official:
        config = config.model_copy(update={"train": config.train.model_copy(update={"steps": 7})})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w, nodes = hand.start(), range(6)
    sizes = [len(hand.data.train_of(k).labels) for k in nodes]
    c = {n: np.zeros_like(v) for n, v in w.items()}
    own = [{n: np.zeros_like(v) for n, v in w.items()} for _ in nodes]
    for number in (1, 2, 3):
        cohort, models, delta = hand.cohort(number, tmp_path / "run"), [], {n: 0.0 for n in w}
        decayed = config.train.optimizer.lr * config.train.lr_decay ** (number - 1)
        for k in cohort:
            share = sizes[k] * 6 / sum(sizes) if official else 1.0
            theta, steps = hand.train(number, k, w, lambda n, g, v, k=k, s=share, c=c: g - own[k][n] + c[n] / s)
            assert not official or steps == 7
            rate = config.train.optimizer.lr if official else decayed
            new = {n: own[k][n] - c[n] + (w[n] - theta[n]) / (steps * rate) for n in w}
            delta = {n: delta[n] + share * (new[n] - own[k][n]) for n in w}
            own[k] = new
            models.append(theta)
        c = {n: c[n] + delta[n] / 6 for n in w}
        w = {n: w[n] + strategy["server_lr"] * (sum(t[n] for t in models) / len(models) - w[n]) for n in w}
    close(tmp_path / "run", w)
    close(tmp_path / "run", c, "control")


def test_scaffolds_official_anchor_is_the_aggregated_model(tiny: Make, tmp_path: Path) -> None:
    """Under FedFTG the two differ: the clients start from the fine-tuned model."""
    strategy = {"name": "fedftg", **SMALL, "base": {"name": "scaffold", "official_quirks": True}}
    run(setting(tiny, strategy, rounds=1), tmp_path / "run")
    base = server_state(tmp_path / "run")["base"]
    assert base["aggregated"].keys() == base["control"].keys()
    assert any(not torch.equal(base["aggregated"][n], base["weights"][n]) for n in base["control"])


def test_an_objective_below_zero_is_no_failure(tiny: Make, tmp_path: Path) -> None:
    """<theta, c - c_k> is a part of what a node reports as its loss."""
    train = {"epochs": 4, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.3}}
    changes = {"strategy": {"name": "scaffold"}, "data.partition.alpha": 0.1, "rounds": 5, "train": train}
    assert run(tiny(changes), tmp_path / "run")["failures"] == 0


@pytest.mark.parametrize(
    ("optimizer", "taken"),
    [
        ({"name": "sgd", "lr": 0.1}, True),
        ({"name": "sgd", "lr": 0.1, "weight_decay": 0.1}, True),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.5}, False),
        ({"name": "adam"}, False),
    ],
)
def test_only_plain_sgd_sums_its_gradients(tiny: Make, optimizer: dict[str, Any], taken: bool) -> None:
    environment = Environment(tiny({"train.optimizer": optimizer}))
    with contextlib.nullcontext() if taken else pytest.raises(InputError, match="^train.optimizer: scaffold uses"):
        Scaffold().check(environment)


@pytest.mark.parametrize(("rate", "moved"), [(1.0, [5.0, 9.0]), (2.0, [9.0, 9.0]), (0.5, [3.0, 9.0])])
def test_the_servers_rate_moves_the_parameters_and_not_the_buffers(rate: float, moved: list[float]) -> None:
    """w = 1, the mean of the models is 5; c = 0.25 changes by 6 / 8 of the mean change 0.5; buffers are the mean."""
    merged = Payload(
        weights={"w": torch.tensor([5.0]), "buffer": torch.tensor([9.0])},
        control_variates={"w": torch.tensor([0.5])},
        numbers={"examples": 6.0, "loss": 0.75},
    )
    federation = Mock(ask=Mock(return_value=merged), nodes=range(8))
    method = Scaffold(server_lr=rate)
    method.weights = {"w": torch.tensor([1.0]), "buffer": torch.tensor([1.0])}
    method.control = {"w": torch.tensor([0.25])}
    method.run_round(federation)
    assert [method.weights[name].item() for name in ("w", "buffer")] == moved
    assert method.control["w"].tolist() == [0.625]
    assert method.aggregated == {}
    expect = federation.ask.call_args.kwargs["expect"]
    assert expect.numbers == {"examples": (1.0, 1.0), "loss": (-3.4e38, 3.4e38)}
    federation.log.assert_called_once_with("train_loss", 0.75)


def test_control_variates_start_at_0_and_the_official_anchor_at_the_first_model(tiny: Make) -> None:
    environment = Environment(tiny())
    weights = environment.initial_weights()
    counts = [(0, Payload(numbers={"examples": 3.0})), (1, Payload(numbers={"examples": 5.0}))]
    for official in (False, True):
        method = Scaffold(official_quirks=official)
        method.weights = weights
        method.prepare(Mock(environment=environment, ask=Mock(return_value=counts)))
        assert method.control.keys() == weights.keys()
        assert not any(tensor.any() for tensor in method.control.values())
        assert method.aggregated == (weights if official else {})
        assert method.mean_images == (4.0 if official else None)

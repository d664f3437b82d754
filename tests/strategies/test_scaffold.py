"""SCAFFOLD: whole rounds by the paper's formulas, and the anchor of the official code."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import Make, lines, server_state
from helpers.bases import SMALL
from helpers.hand import Hand, close, setting

from fedkd import IMAGES, Environment, InputError, Payload, default_stream, torch_stream
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


@pytest.mark.parametrize("initial", ["zero", "weights", "random"])
def test_three_rounds_with_the_options_of_niid_bench_are_its_formulas(tiny: Make, tmp_path: Path, initial: str) -> None:
    """v <- 0.9 v + g, w <- w - lr v - lr (c - c_k); the means of w and c are weighted by the nodes' images."""
    options = {"correction": "outside", "weighting": "examples", "initial_control": initial}
    config = setting(tiny, {"name": "scaffold", **options})
    optimizer = config.train.optimizer.model_copy(update={"momentum": 0.9, "lr": 0.02})
    config = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w, c = hand.start(), first_control(hand, initial)
    own = [c] * 6
    for number in (1, 2, 3):
        cohort, models, changes, weights = hand.cohort(number, tmp_path / "run"), [], [], []
        rate = 0.02 * config.train.lr_decay ** (number - 1)
        for k in cohort:
            velocity = {n: 0.0 for n in w}

            def move(n: str, g: Any, value: Any, k: int = k, velocity: Any = velocity, c: Any = c) -> Any:
                velocity[n] = 0.9 * velocity[n] + g
                return velocity[n] + c[n] - own[k][n]

            theta, steps = hand.train(number, k, w, move)
            new = {n: own[k][n] - c[n] + (w[n] - theta[n]) / (steps * rate) for n in w}
            models.append(theta)
            changes.append({n: new[n] - own[k][n] for n in w})
            weights.append(len(hand.data.train_of(k).labels))
            own[k] = new
        c = {n: c[n] + 3 / 6 * np.average([one[n] for one in changes], axis=0, weights=weights) for n in w}
        w = {n: np.average([one[n] for one in models], axis=0, weights=weights) for n in w}
    close(tmp_path / "run", w)
    close(tmp_path / "run", c, "control")


def first_control(hand: Hand, initial: str) -> dict[str, np.ndarray]:
    w = hand.start()
    if initial == "random":
        with default_stream(torch_stream(hand.config.seed, 0, "server", "initial-control")):
            other = Environment(hand.config).new_model(0).state_dict()
        found = {n: other[n].double().numpy() for n in w}
        assert not any(np.allclose(found[n], w[n]) for n in w)
        return found
    return w if initial == "weights" else {n: np.zeros_like(value) for n, value in w.items()}


def test_without_momentum_it_is_the_same_whether_the_correction_is_in_the_gradient(tiny: Make, tmp_path: Path) -> None:
    for correction in ("gradient", "outside"):
        run(setting(tiny, {"name": "scaffold", "correction": correction}), tmp_path / correction)
    one, other = (server_state(tmp_path / correction)["weights"] for correction in ("gradient", "outside"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)


def test_scaffold_learns_with_momentum(tiny: Make, tmp_path: Path) -> None:
    train = {"epochs": 4, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}}
    options = {"correction": "outside", "weighting": "examples", "initial_control": "weights"}
    config = tiny({"strategy": {"name": "scaffold", **options}, "train": train, "rounds": 6})
    assert run(config, tmp_path / "run")["failures"] == 0
    first, *_, last = (line["metrics"] for line in lines(tmp_path / "run"))
    assert last["global/accuracy"] > first["global/accuracy"] + 0.4
    assert "personal_after_fit/accuracy" in last


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
    ("optimizer", "taken", "taken_outside"),
    [
        ({"name": "sgd", "lr": 0.1}, True, True),
        ({"name": "sgd", "lr": 0.1, "weight_decay": 0.1}, True, True),
        ({"name": "sgd", "lr": 0.1, "momentum": 0.5}, False, True),
        ({"name": "adam"}, False, False),
    ],
)
def test_only_plain_sgd_sums_its_gradients_and_momentum_needs_a_correction_outside(
    tiny: Make, optimizer: dict[str, Any], taken: bool, taken_outside: bool
) -> None:
    environment = Environment(tiny({"train.optimizer": optimizer}))
    refused = pytest.raises(InputError, match="^train.optimizer: scaffold uses.* strategy.correction = .outside")
    with contextlib.nullcontext() if taken else refused:
        Scaffold().check(environment)
    with contextlib.nullcontext() if taken_outside else refused:
        Scaffold(correction="outside").check(environment)


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


@pytest.mark.parametrize(("replies", "share"), [({"replies": 6, "weight": 300.0}, 0.75), ({}, 0.125)])
def test_weighted_by_images_c_changes_by_the_share_of_nodes_that_answered(
    replies: dict[str, float], share: float
) -> None:
    """Six of eight nodes, or one, whose reply was merged with no other."""
    numbers = {"examples": 50.0, "loss": 0.75, **replies}
    merged = Payload(weights={"w": torch.tensor([5.0])}, control_variates={"w": torch.tensor([1.0])}, numbers=numbers)
    federation = Mock(ask=Mock(return_value=merged), nodes=range(8))
    method = Scaffold(weighting="examples")
    method.weights, method.control = {"w": torch.tensor([1.0])}, {"w": torch.tensor([0.0])}
    method.run_round(federation)
    assert method.control["w"].tolist() == [share]
    assert federation.ask.call_args.kwargs["expect"].numbers["examples"] == IMAGES


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

"""SCAFFOLD: whole rounds by the paper's formulas, and the anchor of the official code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make, server_state
from helpers.bases import SMALL
from helpers.hand import Hand, close, setting

from fedkd.runs.run import run


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

"""FedDF: its ensembles, and which model it keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Make, lines, server_state
from helpers.formulas import normal, softmax

from fedkd import Environment
from fedkd.learning.losses import kl_from_probabilities
from fedkd.runs.run import run
from fedkd.strategies.feddf import ensemble_targets


def test_the_ensembles_of_feddf() -> None:
    z = normal(3, 4, 5)
    rows = z.tolist()
    for i in range(4):
        mean = [sum(rows[k][i][c] for k in range(3)) / 3 for c in range(5)]
        assert ensemble_targets(z, "avg_logits", 2.0)[i].tolist() == pytest.approx(softmax(mean, 2.0), rel=1e-5)
        for kind, temperature in (("avg_probs", 1.0), ("avg_losses", 2.0)):
            each = [softmax(rows[k][i], temperature) for k in range(3)]
            right = [sum(p[c] for p in each) / 3 for c in range(5)]
            assert ensemble_targets(z, kind, 2.0)[i].tolist() == pytest.approx(right, rel=1e-5)  # type: ignore[arg-type]


def test_avg_losses_has_the_gradient_of_the_mean_of_the_losses() -> None:
    z, student = normal(3, 4, 5), normal(4, 5, seed=1).requires_grad_()
    losses = [kl_from_probabilities(student, torch.softmax(z[k] / 2, 1), 2.0) for k in range(3)]
    (right,) = torch.autograd.grad(torch.stack(losses).mean(), student)
    one = kl_from_probabilities(student, ensemble_targets(z, "avg_losses", 2.0).double(), 2.0)
    (found,) = torch.autograd.grad(one, student)
    torch.testing.assert_close(found, right, atol=1e-7, rtol=1e-5)


def test_feddf_keeps_the_best_model_stops_early_and_drops_the_worst(tiny: Make, tmp_path: Path) -> None:
    changes = {
        "data.public": {"size": 200}, "data.validation": {"size": 50}, "rounds": 1, "train.epochs": 3,
        "strategy": {"name": "feddf", "steps": 400, "check_every": 10, "patience": 30, "drop_worst": True},
    }  # fmt: skip
    config = tiny(changes)
    run(config, tmp_path / "run")
    log = lines(tmp_path / "run")[1]["log"]
    assert log["distillation_steps_0"] == min(log["best_step_0"] + 30, 400)
    environment = Environment(config)
    kept = server_state(tmp_path / "run")
    assert environment.data.validation is not None
    score = environment.score(0, kept["models"][0], environment.data.validation)
    assert score["accuracy"] == log["validation_accuracy_0"]
    barely = {**changes, "train.optimizer": {"name": "sgd", "lr": 1e-9}, "seed": 1}  # starts below chance, and stays
    run(tiny(barely), tmp_path / "barely")
    log = lines(tmp_path / "barely")[1]["log"]
    assert log["dropped_teachers"] == 6
    assert "distillation_steps_0" not in log

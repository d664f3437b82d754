"""FML: two models that teach each other, a private one and a meme."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import Make, server_state
from helpers.formulas import kl, normal, softmax

from fedkd import Environment
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run
from fedkd.strategies.fml import FML, mutual_loss


def test_mutual_losses_are_batch_means_and_teach_without_being_taught() -> None:
    """Public frameworks divide KL by batch x classes, and let the gradient leak into the teacher."""
    private, meme = normal(6, 5).requires_grad_(), normal(6, 5, seed=1).requires_grad_()
    labels, a, b = torch.tensor([0, 1, 2, 3, 4, 0]), 0.3, 0.6
    value = mutual_loss(private, meme, labels, a, b)
    right = 0.0
    for x, y, label in zip(private.tolist(), meme.tolist(), labels.tolist(), strict=True):
        p, q = softmax(x), softmax(y)
        right += -a * math.log(p[label]) + (1 - a) * kl(q, p) - b * math.log(q[label]) + (1 - b) * kl(p, q)
    assert value.item() == pytest.approx(right / 6, rel=1e-12)
    found = torch.autograd.grad(value, (private, meme))
    p, q, onehot = torch.softmax(private, 1), torch.softmax(meme, 1), torch.eye(5, dtype=torch.float64)[labels]
    torch.testing.assert_close(found[0], (a * (p - onehot) + (1 - a) * (p - q)).detach() / 6)
    torch.testing.assert_close(found[1], (b * (q - onehot) + (1 - b) * (q - p)).detach() / 6)
    assert FML().alpha == FML().beta == 0.5  # with 1 and 1 there is no distillation at all


def test_fml_trains_one_private_model_a_node_and_a_meme_of_its_own_shape(tiny: Make, tmp_path: Path) -> None:
    meme = {"name": "mlp", "hidden": [9]}
    changes = {"model": {"names": [{"name": "mlp", "hidden": [16]}, {"name": "cnn", "channels": [4], "hidden": 8}]}}
    summary = run(tiny({**changes, "strategy": {"name": "fml", "meme": meme}}), tmp_path / "run")
    parameters = 64 * 9 + 9 + 9 * 10 + 10
    names = sum(len(f"{layer}.{kind}") for layer in ("features.1", "classifier") for kind in ("weight", "bias"))
    assert summary["bytes"]["up"]["weights"] == 2 * 6 * (4 * parameters + 4 * 128 + names)
    assert 'name = "mlp"' in (tmp_path / "run" / "config.toml").read_text().split("[strategy.meme]")[1]


def test_fml_clips_each_of_the_two_models_by_itself(tiny: Make, tmp_path: Path) -> None:
    train = {"steps": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 1.0}, "clip": 0.01}
    config = tiny({"strategy": {"name": "fml"}, "train": train, "cohort": 1, "rounds": 1})
    run(config, tmp_path / "run")
    environment = Environment(config)
    checkpoint = latest(tmp_path / "run" / "checkpoints")[1]
    ((node, state),) = load_nodes(checkpoint)
    private, meme = tensors_of(state["model"]), server_state(checkpoint)["weights"]  # type: ignore[arg-type]
    for now, of in ((private, node), (meme, "server")):
        before = environment.initial_weights(0, of)
        moved = torch.cat([(now[name] - before[name]).flatten() for name in before])
        assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)

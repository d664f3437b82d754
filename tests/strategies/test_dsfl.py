"""DS-FL: entropy reduction, and what is sent."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make, lines
from helpers.formulas import normal, softmax

from fedkd.runs.run import run
from fedkd.strategies.dsfl import enhanced_entropy_reduction, entropy_reduction


def test_entropy_reduction_sharpens_probabilities_up_to_its_ceiling() -> None:
    p = torch.softmax(normal(6, 5), 1)
    for row, sharp in zip(p.tolist(), entropy_reduction(p).tolist(), strict=True):
        assert sharp == pytest.approx(softmax(row, 0.1), rel=1e-12)
    for classes, ceiling in ((10, 0.9996), (100, 0.9955)):
        onehot = torch.eye(classes)[:1]
        assert entropy_reduction(onehot).max().item() == pytest.approx(ceiling, abs=5e-5)
    flat = entropy_reduction(p, 1.0)
    assert (flat.amax(1) / flat.amin(1)).max() <= math.e
    torch.testing.assert_close(enhanced_entropy_reduction(p, 1.0), p)
    assert torch.isfinite(enhanced_entropy_reduction(torch.full((1, 100), 0.01), 200.0)).all()
    right = p**2.5 / (p**2.5).sum(1, keepdim=True)
    torch.testing.assert_close(enhanced_entropy_reduction(p, 2.5), right)


def test_dsfl_sends_no_targets_in_round_1_and_the_servers_model_learns(tiny: Make, tmp_path: Path) -> None:
    changes = {
        "strategy": {"name": "dsfl", "distil_epochs": 5}, "data.public": {"size": 200}, "rounds": 4,
        "train": {"epochs": 4, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.005}},
    }  # fmt: skip
    run(tiny(changes), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert "logits" not in found[1]["bytes"]["down"]
    assert found[2]["bytes"]["down"]["logits"] == 6 * (200 * 10 * 4 + 128 + len("targets"))
    assert found[4]["metrics"]["global/accuracy"] > found[0]["metrics"]["global/accuracy"] + 0.2
    for line in found[1:]:
        assert line["log"]["target_entropy"] < line["log"]["mean_entropy"]  # T = 0.1 sharpens
    assert np.isfinite(found[4]["metrics"]["personal_after_distillation/accuracy"])

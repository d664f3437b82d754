"""FedNTD: distillation that leaves the label out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Make, lines
from helpers.formulas import kl, normal, softmax

from fedkd.learning.losses import kl_divergence
from fedkd.runs.run import run
from fedkd.strategies.fedntd import not_true


def test_not_true_distillation_leaves_the_label_out() -> None:
    z, teacher, labels = normal(4, 5), normal(4, 5, seed=1), torch.tensor([4, 0, 2, 2])
    value = kl_divergence(not_true(z, labels), not_true(teacher, labels), 2.0)
    right = 0.0
    for x, y, label in zip(z.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        del x[label], y[label]
        right += 4 * kl(softmax(y, 2.0), softmax(x, 2.0))
    assert value.item() == pytest.approx(right / 4, rel=1e-12)
    moved = z.clone()
    moved[torch.arange(4), labels] += 3.0
    torch.testing.assert_close(kl_divergence(not_true(moved, labels), not_true(teacher, labels), 2.0), value)


def test_fedntd_without_its_term_is_fedavg_and_with_it_is_not(tiny: Make, tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "avg": {"name": "fedavg"}, "off": {"name": "fedntd", "beta": 0.0}, "on": {"name": "fedntd"}
    }  # fmt: skip
    for name, strategy in runs.items():
        run(tiny({"strategy": strategy, "train.epochs": 2}), tmp_path / name)
    metrics = {name: [line["metrics"]["global/loss"] for line in lines(tmp_path / name)] for name in runs}
    assert metrics["off"] == pytest.approx(metrics["avg"], rel=1e-5)
    assert metrics["on"] != pytest.approx(metrics["avg"], rel=1e-3)

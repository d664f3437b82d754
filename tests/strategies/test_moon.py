"""MOON: FedAvg in its first round, contrast later."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import Make, server_state

from fedkd.runs.run import run


def test_moons_first_round_is_fedavg_and_its_contrast_pulls_features_later(tiny: Make, tmp_path: Path) -> None:
    for name, strategy in (("fedavg", {"name": "fedavg"}), ("moon", {"name": "moon", "mu": 5.0})):
        run(tiny({"strategy": strategy, "checkpoint": {"every": 1, "keep": 9}}), tmp_path / name)
    first, second = (
        [server_state(tmp_path / name / "checkpoints" / f"round-{n:06d}")["weights"] for name in ("fedavg", "moon")]
        for n in (1, 2)
    )
    assert all(torch.equal(first[0][n], first[1][n]) for n in first[0])
    assert not all(torch.allclose(second[0][n], second[1][n], atol=1e-4) for n in second[0])

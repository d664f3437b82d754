"""FedProx: its term pulls to the global model."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import Make, server_state

from fedkd import Environment
from fedkd.runs.run import run


def final(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = server_state(folder)["weights"]
    return weights


def test_fedprox_without_its_term_is_fedavg_and_a_strong_one_stays_near(tiny: Make, tmp_path: Path) -> None:
    for name, strategy in [
        ("avg", {"name": "fedavg"}),
        ("none", {"name": "fedprox", "mu": 0.0}),
        ("strong", {"name": "fedprox", "mu": 9.0}),
    ]:
        run(tiny({"strategy": strategy}), tmp_path / name)
    start = Environment(tiny()).initial_weights()

    def moved(name: str) -> float:
        return sum(float(((t - start[key]) ** 2).sum()) for key, t in final(tmp_path / name).items())

    assert all(
        torch.equal(a, b)
        for a, b in zip(final(tmp_path / "avg").values(), final(tmp_path / "none").values(), strict=True)
    )
    assert moved("strong") < moved("avg") / 2

"""Flower's own strategies from a config, with the generic client."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make, checkpoint_bytes, lines, server_state

from fedkd.runs.run import resume, run

FLOWER = "flwr.serverapp.strategy:"


def values(kept: list | dict) -> list:
    return list(kept.values()) if isinstance(kept, dict) else kept


def test_flowers_fedavg_is_our_fedavg(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"cohort": 4}), tmp_path / "ours")
    run(tiny({"cohort": 4, "strategy": {"name": f"{FLOWER}FedAvg"}}), tmp_path / "flowers")
    ours, theirs = (server_state(tmp_path / name) for name in ("ours", "flowers"))
    for name, tensor in ours["weights"].items():
        torch.testing.assert_close(theirs["weights"][name], tensor, atol=1e-6, rtol=1e-5)
    for a, b in zip(lines(tmp_path / "ours"), lines(tmp_path / "flowers"), strict=True):
        assert a["cohort"] == b["cohort"]
        assert a["metrics"].keys() == b["metrics"].keys()
        assert a["bytes"]["up"].get("weights") == b["bytes"]["up"].get("weights")


def test_krum_takes_one_clients_model(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 1, "strategy": {"name": f"{FLOWER}Krum", "num_malicious_nodes": 1}}), tmp_path / "krum")
    run(tiny({"rounds": 1, "strategy": {"name": f"{FLOWER}FedAvg"}}), tmp_path / "mean")
    krum, mean = (server_state(tmp_path / name)["weights"] for name in ("krum", "mean"))
    assert not all(torch.allclose(krum[name], mean[name]) for name in krum)
    assert lines(tmp_path / "krum")[-1]["failures"] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [("FedAdam", {"eta": 0.02, "beta_1": 0.9, "beta_2": 0.99}), ("FedAvgM", {"server_momentum": 0.9})],
)
def test_moments_survive_a_restart(tiny: Make, tmp_path: Path, name: str, options: dict) -> None:
    strategy = {"name": f"{FLOWER}{name}", **options}
    changes = {"strategy": strategy, "rounds": 5, "checkpoint": {"every": 3, "keep": 9}}
    run(tiny(changes), tmp_path / "whole")
    run(tiny(changes), tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "round-000005")
    resume(tmp_path / "cut")
    assert checkpoint_bytes(tmp_path / "cut") == checkpoint_bytes(tmp_path / "whole")
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    state = server_state(tmp_path / "whole")
    assert any(np.abs(array).sum() > 0 for kept in state["kept"].values() for array in values(kept))


def test_batch_norms_counters_stay_integers(tiny: Make, tmp_path: Path) -> None:
    strategy = {"name": f"{FLOWER}FedAvg"}
    run(tiny({"strategy": strategy, "model": {"name": "resnet8"}, "rounds": 1}), tmp_path / "run")
    state = server_state(tmp_path / "run")["weights"]
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert counters
    assert {value.dtype for value in counters.values()} == {torch.int64}
    assert {value.item() for value in counters.values()} == {3}

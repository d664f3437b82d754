"""Weight EMA: the mean of the base's models, which it does not touch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers import Make, lines, server_state
from helpers.bases import SMALL

from fedkd.runs.run import run

CONVNET = {"name": "convnet", "channels": [8], "norm": "batch", "pooling": "max"}


def test_weight_ema_is_the_mean_of_the_bases_models_and_does_not_touch_them(tiny: Make, tmp_path: Path) -> None:
    changes = {"rounds": 4, "checkpoint": {"every": 1, "keep": 9}, "model": CONVNET, "cohort": 4}
    run(tiny({**changes, "strategy": {"name": "fedavg"}}), tmp_path / "base")
    run(tiny({**changes, "strategy": {"name": "weight_ema", "decay": 0.6}}), tmp_path / "ema")
    models = [server_state(tmp_path / "base" / "checkpoints" / f"round-{n:06d}")["weights"] for n in range(1, 5)]
    weights = np.array([0.6**3, 0.6**2, 0.6, 1.0])
    state = server_state(tmp_path / "ema")
    for name, tensor in models[-1].items():
        assert torch.equal(state["base"]["weights"][name], tensor)
        if tensor.is_floating_point():
            right = sum(w * m[name].double() for w, m in zip(weights, models, strict=True)) / weights.sum()
            torch.testing.assert_close(state["average"][name].double(), right, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(state["average"][name], tensor)
    for a, b in zip(lines(tmp_path / "base"), lines(tmp_path / "ema"), strict=True):
        assert a["metrics"]["global/accuracy"] == b["metrics"]["latest/accuracy"]
        assert a["bytes"] == b["bytes"]
    assert (
        lines(tmp_path / "ema")[-1]["metrics"]["global/loss"] != lines(tmp_path / "ema")[-1]["metrics"]["latest/loss"]
    )


def test_weight_ema_over_fedftg_measures_the_average_and_each_stage_below(tiny: Make, tmp_path: Path) -> None:
    changes = {"rounds": 2, "model": CONVNET}
    fedftg = {"name": "fedftg", **SMALL}
    run(tiny({**changes, "strategy": fedftg}), tmp_path / "base")
    run(tiny({**changes, "strategy": {"name": "weight_ema", "base": fedftg}}), tmp_path / "ema")
    base, ema = (lines(tmp_path / name)[-1]["metrics"] for name in ("base", "ema"))
    assert ema["latest/loss"] == base["global/loss"]
    assert ema["aggregated/loss"] == base["aggregated/loss"]
    assert ema["global/loss"] not in (base["global/loss"], base["aggregated/loss"])

"""The round loop: metrics over nodes, when they are taken, and the progress of long work on the server."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Make, lines
from helpers.bases import SMALL

from fedkd.core.round_loop import run_rounds
from fedkd.core.setup import make_setup
from fedkd.runs.run import make_engine, run


def test_metrics_are_means_over_nodes_with_their_spread(tiny: Make, tmp_path: Path) -> None:
    summary = run(tiny({"evaluate.fraction": 0.5}), tmp_path / "run")
    for line in lines(tmp_path / "run"):
        nodes = line["nodes"]["personal/accuracy"]
        assert len(nodes) == 3
        values = torch.tensor(list(nodes.values()), dtype=torch.float64)
        assert line["metrics"]["personal/accuracy"] == pytest.approx(values.mean().item(), abs=1e-12)
        spread = line["spread"]["personal/accuracy"]
        assert spread["std"] == pytest.approx(values.std(correction=0).item(), abs=1e-12)
        assert (spread["min"], spread["max"]) == (values.min().item(), values.max().item())
        assert {"global/accuracy", "global/loss"} <= set(line["metrics"])
    assert summary["final"] == {**lines(tmp_path / "run")[-1]["metrics"]}


def test_evaluation_happens_every_so_often_and_at_the_end(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"rounds": 5, "evaluate.every": 2}), tmp_path / "run")
    assert [bool(line["metrics"]) for line in lines(tmp_path / "run")] == [True, False, True, False, True, True]


def test_long_work_on_the_server_tells_its_progress(tiny: Make) -> None:
    reported: list[tuple[int, str, int, int]] = []
    setup = make_setup(tiny({"strategy": {"name": "fedftg", **SMALL}}))
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_step=lambda *step: reported.append(step))
    assert reported == [(n, "server distillation", done, 3) for n in (1, 2) for done in range(4)]

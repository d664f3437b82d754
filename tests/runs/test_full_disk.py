"""A disk that is full at any write of a run: one message, and --resume ends as if nothing had been."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import TINY, Make, checkpoint_bytes, lines, merged
from helpers.disk import full_at
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import DistillConfig
from fedkd.files import NotWritten
from fedkd.runs import distill, figures
from fedkd.runs.run import resume, run

CODE = """
import numpy as np
from fedkd.core.record import Captioned
from fedkd.strategies.fedavg import FedAvg


class Showing(FedAvg):
    def run_round(self, federation):
        super().run_round(federation)
        federation.log("nodes", list(range(101)))
        federation.log("weights", np.full((101, 101), 0.5))
        federation.record.images["seen"] = Captioned(np.zeros((2, 1, 8, 8), np.uint8), ("a", "b"))
"""
SHORT: dict[str, Any] = {
    "rounds": 2, "checkpoint": {"every": 1, "keep": 1}, "data.partition": {"scheme": "iid", "clients": 2},
    "data.train_per_class": 4, "data.test_per_class": 2, "evaluate": {"every": 2},
}  # fmt: skip


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: they take a second, and have a test of their own."""
    monkeypatch.setattr(figures, "draw", lambda environment, folder: [])


def short(tiny: Make, folder: Path) -> Any:
    (folder / "showing.py").write_text(CODE)
    return tiny({**SHORT, "strategy": f"{folder / 'showing.py'}:Showing"})


def end_of(folder: Path) -> tuple[Any, ...]:
    shown = {path.name: path.read_bytes() for path in folder.rglob("*.npz")}
    return lines(folder), checkpoint_bytes(folder), sorted(p.name for p in (folder / "checkpoints").iterdir()), shown


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_disk_at_each_write_of_a_run(tiny: Make, tmp_path: Path, step: int) -> None:
    config = short(tiny, tmp_path)
    run(config, tmp_path / "first")  # imports what later runs have imported when they begin
    with full_at(0, tmp_path / "whole") as writes:
        run(config, tmp_path / "whole")
    wanted = end_of(tmp_path / "whole")
    for kind in ("metrics.jsonl", "config.toml", "origin.json", "partition.json", "summary.json", "server.safetensors",
                 "checkpoint.json", "logs/weights", "figures/seen/"):  # fmt: skip
        assert any(kind in write for write in writes), (kind, writes)
    for number in range(1, len(writes) + 1, step):
        out = tmp_path / f"full-{number}"
        with full_at(number, out), pytest.raises(NotWritten) as refused:
            run(config, out)
        said = str(refused.value)
        assert str(out) in said, writes[number - 1]
        assert "No space left on device" in said
        assert len(said.splitlines()) == 1
        assert not list(out.rglob(".*.partial")), writes[number - 1]
        if (out / "config.toml").is_file():
            assert "--resume" in said
            resume(out)
        else:  # nothing had begun
            assert "give the command again" in said
            run(config, out)
        assert end_of(out) == wanted, writes[number - 1]


def test_figures_that_cannot_be_written_are_named_and_cost_nothing(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with full_at(0, tmp_path / "whole/figures") as writes:
        run(tiny(SHORT), tmp_path / "whole")
    for number in (one for one, write in enumerate(writes, 1) if write.endswith(".png")):
        caplog.clear()
        with full_at(number, tmp_path / f"full-{number}/figures"), caplog.at_level(logging.WARNING, "fedkd"):
            run(tiny(SHORT), tmp_path / f"full-{number}")
        assert "No space left on device" in caplog.text
        assert "cannot be drawn" in caplog.text


def test_the_command_ends_with_one_and_a_line(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(tomli_w.dumps(merged(TINY, SHORT)))
    for number in (1, 5, 9):
        out = tmp_path / f"out-{number}"
        with full_at(number, out):
            result = CliRunner().invoke(app, ["run", str(tmp_path / "run.toml"), "--out", str(out)])
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        assert result.stderr.count("No space left on device") == 1


@pytest.mark.usefixtures("without_figures")
def test_a_clock_that_goes_back_changes_nothing(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    now = iter(range(10**9, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run(tiny({**SHORT, "rounds": 1}), tmp_path / "run")
    text = (tmp_path / "run/config.toml").read_text()
    (tmp_path / "run/config.toml").write_text(text.replace("rounds = 1", "rounds = 3"))
    import os

    os.utime(tmp_path / "run/checkpoints/round-000001", (0, 0))
    summary = resume(tmp_path / "run")
    assert summary["rounds"] == 3
    assert min(summary["seconds"].values()) >= 0
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["round-000003"]


@pytest.mark.slow
def test_a_full_disk_at_each_write_of_a_distillation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "_draw", lambda work, folder: None)
    config = DistillConfig.model_validate(
        {
            "iterations": 2, "ipc": 1, "data": {"name": "digits", "train_per_class": 4, "test_per_class": 2},
            "model": {"name": "mlp", "hidden": [8]}, "distiller": {"name": "dm"}, "checkpoint": {"every": 1},
            "evaluate": {"every": 2, "networks": 1, "epochs": 1},
        }
    )  # fmt: skip
    distill.distill(config, tmp_path / "first")  # imports what later ones have imported when they begin
    with full_at(0, tmp_path / "whole") as writes:
        distill.distill(config, tmp_path / "whole")

    def end(folder: Path) -> Any:
        return [line["metrics"] for line in lines(folder)], (folder / "virtual.safetensors").read_bytes()

    for number in range(1, len(writes) + 1):
        out = tmp_path / f"full-{number}"
        with full_at(number, out), pytest.raises(NotWritten, match="No space left on device"):
            distill.distill(config, out)
        if (out / "config.toml").is_file():
            distill.resume(out)
        else:
            distill.distill(config, out)
        assert end(out) == end(tmp_path / "whole"), writes[number - 1]

"""A run, a sweep and a distillation survive each signal at random moments, and end as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tomli_w
from helpers import TINY, checkpoint_bytes, default_signals, lines, merged
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

FEDKD = [sys.executable, "-m", "fedkd"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOMENTS = 10


def until_done(first: list[str], again: list[str], folder: Path, seconds: float, number: signal.Signals) -> int:
    """Run a command, and send it a signal at random moments within `seconds`; return how often one has ended it.

    A moment before anything has begun counts too: then the command starts again. `again`: how it goes on.
    """
    moments = random.Random(number)
    ended = 0
    for _ in range(MOMENTS):
        begun = any((folder / "out").rglob("config.toml"))
        command = again if begun else first
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)
        alarm = threading.Timer(moments.uniform(0.1, seconds), process.send_signal, [number])
        alarm.start()
        _, errors = process.communicate(timeout=300)
        alarm.cancel()
        assert "Traceback" not in errors, errors
        assert process.returncode in (0, 128 + number, -number), errors  # negative: before Python had its handlers
        ended += process.returncode != 0
    begun = any((folder / "out").rglob("config.toml"))
    last = subprocess.run(again if begun else first, cwd=folder, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    return ended


def seconds_of(command: list[str], folder: Path) -> float:
    """Run a command to its end, and return how long it took."""
    begin = time.monotonic()
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return time.monotonic() - begin


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run(tmp_path: Path, number: signal.Signals) -> None:
    changes = {"strategy": "scaffold", "rounds": 60, "checkpoint": {"every": 7}, "cohort": 4}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(merged(TINY, changes)))
    seconds = seconds_of([*FEDKD, "run", "run.toml", "--out", "whole"], tmp_path)
    first, again = [*FEDKD, "run", "run.toml", "--out", "out"], [*FEDKD, "run", "--resume", "out"]
    assert until_done(first, again, tmp_path, seconds, number) >= 2
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    assert checkpoint_bytes(tmp_path / "out") == checkpoint_bytes(tmp_path / "whole")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_sweep(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "run.toml").write_text(tomli_w.dumps(merged(TINY, {"rounds": 40, "checkpoint": {"every": 7}})))
    sweep = [*FEDKD, "sweep", "run.toml", "--vary", "strategy=fedavg,scaffold", "--seeds", "0,1", "--out"]
    seconds = seconds_of([*sweep, "whole"], tmp_path)
    until_done([*sweep, "out"], [*sweep, "out"], tmp_path, seconds, number)
    runs = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(runs) == 4
    for run in runs:
        assert lines(tmp_path / "out" / run) == lines(tmp_path / "whole" / run)
        assert checkpoint_bytes(tmp_path / "out" / run) == checkpoint_bytes(tmp_path / "whole" / run)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_distillation(tmp_path: Path, number: signal.Signals) -> None:
    table = {
        "iterations": 100, "ipc": 1, "distiller": "dm", "data": {"name": "digits", "train_per_class": 20},
        "checkpoint": {"every": 15}, "model": {"name": "convnet", "channels": [4]},
        "evaluate": {"every": 30, "networks": 1, "epochs": 10},
    }  # fmt: skip
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    seconds = seconds_of([*FEDKD, "distill", "run.toml", "--out", "whole"], tmp_path)
    first, again = [*FEDKD, "distill", "run.toml", "--out", "out"], [*FEDKD, "distill", "--resume", "out"]
    assert until_done(first, again, tmp_path, seconds, number) >= 2
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    ours, whole = (load_file(tmp_path / name / "virtual.safetensors") for name in ("out", "whole"))
    assert ours.keys() == whole.keys()
    assert all(ours[name].equal(whole[name]) for name in whole)

"""What a run survives, with real processes: kill -9 at any moment, and a resumed run that ends in the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from helpers import PLUGINS, TINY, checkpoint_bytes, lines, merged
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import parse_config
from fedkd.runs.run import run

pytestmark = pytest.mark.slow


RUNS = {
    "fedavg": {"strategy": {"name": "fedavg"}, "cohort": 4},
    "scaffold": {"strategy": {"name": "scaffold"}, "cohort": 4},
    "knfu": {"strategy": {"name": "knfu"}, "data.public": {"size": 40}, "model": {"names": ["mlp", "cnn"]}},
    "fedftg": {
        "model": {"name": "convnet", "channels": [8], "norm": "batch"},
        "strategy": {"name": "fedftg", "iterations": 2, "batch_size": 20, "noise": 8, "generator_width": 4},
    },
}


DEATHS = [  # in this order, each after a --resume: where, and at which call of it
    ("fedkd.learning.training:train", 4),  # in a client, before the first checkpoint after round 0
    ("fedkd.runs.checkpoints:_save", 2),  # while a checkpoint is written
    ("torn", 2),  # with half a line in metrics.jsonl
    ("fedkd.runs.checkpoints:_digest", 1),  # checking the checkpoint
    ("shutil:rmtree", 2),  # replacing a checkpoint
    ("fedkd.runs.figures:draw", 1),  # at the very end
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    table = merged(TINY, {**RUNS[name], "rounds": 5, "checkpoint": {"every": 2}})
    run(parse_config(table), tmp_path / "whole")
    config, out = tmp_path / "run.toml", tmp_path / "killed"
    config.write_text(tomli_w.dumps(table))
    killed = 0
    for where, number in DEATHS:
        start = ["--resume", str(out)] if out.exists() else [str(config), "--out", str(out)]
        command = [sys.executable, str(PLUGINS / "kill_at.py"), where, str(number), "run", *start]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        killed += ended.returncode != 0
    assert killed >= 5
    assert CliRunner().invoke(app, ["run", "--resume", str(out)]).exit_code == 0
    assert lines(out) == lines(tmp_path / "whole")
    assert checkpoint_bytes(out) == checkpoint_bytes(tmp_path / "whole")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    config, out = tmp_path / "run.toml", tmp_path / "killed"
    config.write_text(tomli_w.dumps(TINY))
    run(parse_config(TINY), tmp_path / "whole")
    command = [sys.executable, str(PLUGINS / "kill_at.py"), "fedkd.runs.checkpoints:_save", "1"]
    assert subprocess.run([*command, "run", str(config), "--out", str(out)], check=False).returncode == -signal.SIGKILL
    assert CliRunner().invoke(app, ["run", "--resume", str(out)]).exit_code == 0
    assert lines(out) == lines(tmp_path / "whole")
    assert checkpoint_bytes(out) == checkpoint_bytes(tmp_path / "whole")

"""What a run began with is what it goes on with: images, partition, code files, versions; or the change is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from helpers import TINY, lines, merged
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.runs import origin

RUNNER = CliRunner()
STRATEGY = "from helping import FACTOR\nfrom fedkd.strategies.fedavg import FedAvg\nclass Mine(FedAvg):\n    pass\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a set of images, a strategy file with a neighbour, a model file, and a finished run."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, 0)
    (tmp_path / "mine.py").write_text(STRATEGY)
    (tmp_path / "helping.py").write_text("FACTOR = 1\n")
    (tmp_path / "model.py").write_text(
        "from fedkd.models.zoo import mlp\ndef small(shape, c):\n    return mlp(shape, c, hidden=[8])\n"
    )
    data = {"name": "npz:s.npz", "root": ".", "partition": {"scheme": "iid", "clients": 2}}
    table = merged(TINY, {"data": data, "strategy": "mine.py:Mine", "model": "model.py:small", "rounds": 1})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    assert call("run", "run.toml", "--out", "out")[0] == 0
    return tmp_path


def write_set(home: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    np.savez(home / "s.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])


def call(*words: str) -> tuple[int, str]:
    """Run the program in a process of its own: a loaded file is not read again in this one."""
    import subprocess
    import sys

    found = subprocess.run([sys.executable, "-m", "fedkd", *words], capture_output=True, text=True, check=False)
    return found.returncode, found.stderr


def change(home: Path, what: str) -> None:
    if what == "images":
        write_set(home, 1)
    elif what == "version":
        kept = json.loads((home / "out" / origin.ORIGIN).read_text())
        kept["versions"]["torch"] = "1.0"
        (home / "out" / origin.ORIGIN).write_text(json.dumps(kept))
    else:
        with (home / what).open("a") as file:
            file.write("\n# another comment\n")


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("images", "the images or labels of its sets"),
        ("mine.py", "the file mine.py"),
        ("helping.py", "the file helping.py"),
        ("model.py", "the file model.py"),
        ("version", "torch (it was 1.0, is"),
    ],
)
def test_a_change_is_refused_by_name_or_recorded(home: Path, what: str, named: str) -> None:
    before = (home / "out" / "metrics.jsonl").read_bytes()
    change(home, what)
    code, text = call("run", "--resume", "out")
    assert code == 2
    assert named in text
    assert "--accept-changes" in text
    assert (home / "out" / "metrics.jsonl").read_bytes() == before
    code, text = call("run", "--resume", "out", "--accept-changes")
    assert code == 0, text
    assert named in text
    summary: dict[str, Any] = json.loads((home / "out" / "summary.json").read_text())
    ((recorded,),) = [[one["what"] for one in summary["origin"]["changes"]]]
    assert [named in one for one in recorded] == [True]
    assert summary["origin"]["changes"][0]["from_round"] == 2
    assert call("run", "--resume", "out")[0] == 0  # it goes on with what was accepted


def test_nothing_has_changed(home: Path) -> None:
    before = lines(home / "out")
    assert call("run", "--resume", "out")[0] == 0
    assert lines(home / "out") == before
    assert not json.loads((home / "out" / "summary.json").read_text())["origin"]["changes"]


def test_a_distillation_is_refused_on_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, 0)
    table = {
        "iterations": 2, "ipc": 1, "distiller": "dm", "data": {"name": "npz:s.npz", "root": "."},
        "model": {"name": "convnet", "channels": [4]}, "evaluate": {"every": 2, "networks": 1, "epochs": 1},
    }  # fmt: skip
    (tmp_path / "d.toml").write_text(tomli_w.dumps(table))
    assert RUNNER.invoke(app, ["distill", "d.toml", "--out", "d"]).exit_code == 0
    write_set(tmp_path, 1)
    refused = RUNNER.invoke(app, ["distill", "--resume", "d"])
    assert refused.exit_code == 2
    assert "the images or labels of its sets" in refused.output
    assert RUNNER.invoke(app, ["distill", "--resume", "d", "--accept-changes"]).exit_code == 0
    assert json.loads((tmp_path / "d" / "summary.json").read_text())["changes"][0]["from_iteration"] == 3


def test_a_damaged_origin_is_named(home: Path) -> None:
    (home / "out" / origin.ORIGIN).write_text("{")
    code, text = call("run", "--resume", "out")
    assert code == 2
    assert "origin.json cannot be read" in text


def test_what_is_imported_late_or_from_a_package_counts_too(home: Path) -> None:
    (home / "sub").mkdir()
    (home / "sub" / "__init__.py").touch()
    (home / "sub" / "deep.py").write_text("SCALE = 1\n")
    (home / "mine.py").write_text(
        STRATEGY.replace("    pass", "    def prepare(self, federation):\n        import sub.deep\n")
    )
    assert call("run", "run.toml", "--out", "late")[0] == 0
    assert "sub/deep.py" in json.loads((home / "late" / origin.ORIGIN).read_text())["files"]
    assert call("run", "--resume", "late")[0] == 0
    change(home, "sub/deep.py")
    code, text = call("run", "--resume", "late")
    assert code == 2
    assert "the file sub/deep.py" in text


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_an_origin_that_is_lost_can_be_accepted(home: Path, how: str) -> None:
    path = home / "out" / origin.ORIGIN
    path.unlink() if how == "missing" else path.write_text("{")
    code, text = call("run", "--resume", "out")
    assert code == 2
    assert "--accept-changes" in text
    assert call("run", "--resume", "out", "--accept-changes")[0] == 0
    assert f"origin.json was {how}" in path.read_text()

"""The examples run as they stand, in a folder that has nothing else."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import HOME

pytestmark = pytest.mark.slow

SCRIPTS = sorted(path.name for path in (HOME / "examples").glob("*.py"))


def run(words: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, timeout=540, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_runs(script: str, tmp_path: Path) -> None:
    said = run([sys.executable, str(HOME / "examples" / script)], tmp_path)
    assert {"first_run.py": "accuracy.png", "own_strategy.py": "Damped: 0.", "own_data.py": "class_"}[script] in said
    assert (tmp_path / "runs").is_dir()


@pytest.mark.xdist_group("ray")
def test_the_whole_way_goes_from_images_to_a_table_and_a_model(tmp_path: Path) -> None:
    run([str(HOME / "examples/whole_way.sh"), "out"], tmp_path)
    out = tmp_path / "out"
    assert (out / "figures/curves.pdf").read_bytes().startswith(b"%PDF")
    table = (out / "tables/compare.tex").read_text()
    assert r"\toprule" in table
    assert all(name in table for name in ("local", "fedavg", "knfu"))
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 1797
    right = [Path(row["sample"]).parent.name == row["label"] for row in rows]
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert sum(right) / len(right) > 0.5
    assert scores["accuracy"] > 0.5
    assert "license: CC-BY-4.0" in (out / "model.onnx.md").read_text()

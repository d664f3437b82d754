"""On a machine without Ray the inline engine runs, and what needs Ray says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import importlib.metadata, sys
sys.modules["ray"] = None
real = importlib.metadata.version
def version(name):
    if name == "ray":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
from fedkd.__main__ import main
main()
"""
CONFIG = """
rounds = 1
[data]
name = "digits"
partition = { scheme = "iid", clients = 2 }
[model]
name = "mlp"
hidden = [4]
[strategy]
name = "fedavg"
"""


def _fedkd(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "c.toml").write_text(CONFIG)
    return subprocess.run([sys.executable, "-c", WITHOUT, *words], cwd=folder, capture_output=True, text=True)


def test_the_inline_engine_runs_without_ray(tmp_path: Path) -> None:
    done = _fedkd(tmp_path, "run", "c.toml", "--out", "o")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["versions"]["ray"] == "not installed"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("run", "c.toml", "--out", "o", "--set", "engine.name=ray"), "engine.name = 'ray'"),
        (("sweep", "c.toml", "--seeds", "0", "--out", "o"), "fedkd sweep"),
    ],
)
def test_what_needs_ray_says_so(tmp_path: Path, words: tuple[str, ...], what: str) -> None:
    done = _fedkd(tmp_path, *words)
    assert done.returncode == 2
    assert f"{what} needs the package 'ray', which is not installed here." in " ".join(done.stderr.split())
    assert not (tmp_path / "o").exists()

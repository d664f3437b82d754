"""A run with a tracker that has a password: no file of the run has it, and a resumed run goes on without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from helpers import TINY, merged
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import Config
from fedkd.errors import InputError
from fedkd.runs.run import resume, run

Tiny = Callable[..., Config]

TRACKER = """
from pathlib import Path
from fedkd.runs.trackers import Tracker
class Told(Tracker):
    def __init__(self, *, uri: str, log: str, api_key: str = "from the environment") -> None:
        Path(log).open("a").write(f"{uri} {api_key}\\n")
        self.api_key = api_key
    def begin(self, config, folder, first_round): pass
    def note(self, line): raise OSError(f"https://me:hunter2@h refused {{'api_key': '{self.api_key}'}}")
    def end(self, summary, figures): pass
"""


def test_no_file_has_a_secret_and_a_resumed_run_says_that_it_is_missing(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "told.py").write_text(TRACKER)
    log = tmp_path / "log"
    options = {"uri": "https://me:hunter2@h", "log": str(log), "api_key": "hunter3"}
    tracker = {"name": f"{tmp_path / 'told.py'}:Told", **options}
    with caplog.at_level(logging.WARNING, "fedkd"):
        run(tiny({"trackers": [tracker, "tensorboard"], "rounds": 1}), tmp_path / "run")
        resume(tmp_path / "run")
    assert log.read_text().splitlines() == ["https://me:hunter2@h hunter3", "https://h from the environment"]
    assert "trackers.0.uri: its secret is not in this copy" in caplog.text
    assert "MLFLOW_TRACKING_PASSWORD" in caplog.text
    assert "hunter" not in caplog.text
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hunter" in path.read_bytes()]
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run"), "-o", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    assert "hunter" not in (tmp_path / "page.html").read_text()


def test_a_strategy_does_not_run_with_stars(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "paid.py").write_text(
        "from dataclasses import dataclass\nfrom fedkd.strategies.fedavg import FedAvg\n"
        "@dataclass(kw_only=True)\nclass Paid(FedAvg):\n    token: str = ''\n"
    )
    run(tiny({"strategy": {"name": f"{tmp_path / 'paid.py'}:Paid", "token": "hunter2"}}), tmp_path / "run")
    assert "hunter2" not in (tmp_path / "run/config.toml").read_text()
    with pytest.raises(InputError, match=r"strategy.token: this secret is not in the copy of the config"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        ["--set", 'trackers=[{name="mlflow", uri="https://me:hunter2@h", token="hunter3"'],
        ["--set", "trackers=[{name='mlflow', api_key='hunter2', uri=3}]"],
        ["--set", "strategy.password=hunter2"],
        ["--set", "data.name=https://me:hunter2@h"],
    ],
)
def test_messages_have_no_secrets(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(tomli_w.dumps(merged(TINY, {})))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run"), *words])
    assert result.exit_code == 2, result.output
    assert "hunter" not in result.output

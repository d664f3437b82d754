"""One process at a time writes into a folder."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.runs.run_folder import alone_in

RUNNER = CliRunner()


def test_one_process_at_a_time_writes_into_a_run_folder(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert RUNNER.invoke(app, ["run", str(config), "--out", str(out)]).exit_code == 0
    before = (out / "metrics.jsonl").read_text()
    with alone_in(out):
        refused = RUNNER.invoke(app, ["run", "--resume", str(out)])
    assert (refused.exit_code, f"{out}: another process uses this folder" in refused.stderr) == (2, True)
    assert (out / "metrics.jsonl").read_text() == before
    assert (out / "summary.json").is_file()

"""`fedkd compare`: what it prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs_by_hand import Write, three_seeds
from typer.testing import CliRunner

from fedkd.cli import app


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "file"], "--out file: the folder cannot be made: File exists"),
        (["--out", "file/deeper"], "--out file/deeper: the folder cannot be made: Not a directory"),
        (["--out", "full"], "full/compare.md cannot be written: Is a directory"),
        (["--target", "nan"], "--target nan: give a number"),
        (["--metric", "no", "--out", "unmade"], "--metric: unknown 'no'"),
    ],
)
def test_outputs_that_cannot_be_written_and_targets_that_are_none_are_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    folder = three_seeds(write)
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full", "compare.md").mkdir(parents=True)
    refused = CliRunner().invoke(app, ["compare", str(folder), *words])
    assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output
    assert not Path("unmade").exists()


def test_the_command_prints_and_writes(write: Write, tmp_path: Path) -> None:
    folder = three_seeds(write)
    out = tmp_path / "tables"
    result = CliRunner().invoke(app, ["compare", str(folder), "--target", "0.5", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "+4.3 ± 3.1" in result.stdout
    assert {path.name for path in out.iterdir()} == {"compare.md", "compare.tex", "compare.csv", "figures"}
    assert f"written: 16 files in {out / 'figures'}" in result.stdout
    assert len(list((out / "figures").iterdir())) == 16
    write("b", 0, [0.6, 0.7], {"data.partition.alpha": 0.1})
    refused = CliRunner().invoke(app, ["compare", str(folder)])
    assert (refused.exit_code, "--by data.partition" in refused.stderr) == (2, True)
    lacking = write("c", 0, [0.6, 0.7], {"data.partition.alpha": 0.2}) / "metrics.jsonl"
    lacking.write_text(lacking.read_text().replace("personal/accuracy", "global/accuracy"))
    words = ["--by", "data.partition.alpha", "--metric", "personal/accuracy"]
    some = CliRunner().invoke(app, ["compare", str(folder), *words])
    assert some.exit_code == 0, some.output
    assert "data.partition.alpha = 0.2: --metric: unknown 'personal/accuracy'" in some.stderr
    both = CliRunner().invoke(app, ["compare", str(folder), "--by", "data.partition.alpha"])
    assert both.exit_code == 0, both.output
    assert "data.partition.alpha = 0.5" in both.stdout
    assert "data.partition.alpha = 0.1" in both.stdout

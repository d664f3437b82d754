"""Parts of the page: what crossed the network, and the scores at the end; names and a baseline for the whole page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.runs_by_hand import Write, three_seeds
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.reports.evaluations import evaluations, traffic
from fedkd.runs.results import Arm, arms_of, find_runs, read_run


def test_traffic_is_by_kind_and_way_as_a_mean_over_seeds(write: Write) -> None:
    arms, _ = arms_of(find_runs([three_seeds(write)])[0])
    part = traffic(arms)
    assert part["header"] == ["strategy", "way", "kind", "MB"]
    assert part["rows"] == [
        ["fedavg", "up", "logits", "1"], ["fedavg", "down", "weights", "3"],
        ["local", "up", "logits", "1"], ["local", "down", "weights", "3"],
    ]  # fmt: skip


def test_the_scores_of_the_first_seed_are_shown(runs: Path) -> None:
    run = read_run(runs / "fedavg-0")
    kept = run.evaluation()
    assert kept is not None
    scores, classes, matrices, calibration = evaluations([Arm("A & B", [run])])
    one = kept["models"]["global"]
    percent = [f"{100 * one[key]:.1f}" for key in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece")]
    assert scores["rows"] == [["A & B, global", "0", str(one["samples"]), *percent]]
    assert [row[:3] for row in classes["rows"]] == [
        ["A & B, global", str(i), str(of["samples"])] for i, of in enumerate(one["classes"])
    ]
    assert "Confusion matrix of A &amp; B, global" in matrices["figures"][0]["svg"]
    assert f"ECE {one['ece']:.3f}" in calibration["figures"][0]["caption"]
    assert evaluations([]) == []


def test_the_page_takes_names_rows_and_a_baseline(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["report", str(runs), "-o", str(out), "--name", "knfu=KnFu <b>", "--rows", "KnFu <b>,fedmd"]
    done = CliRunner().invoke(app, [*words, "--baseline", "fedmd"])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "KnFu &lt;b&gt;" in text
    assert "KnFu <b>" not in text
    table = text.split("<tbody>")[1].split("</tbody>")[0]
    assert table.index("KnFu") < table.index("fedmd")
    assert "fedftg" not in table
    assert "Differences to fedmd are" in text
    assert "none of the --rows is here" in text  # of the runs with another partition
    for wrong, message in (
        (["--rows", "none"], "--rows 'none'"),
        (["--name", "none=x"], "--name 'none'"),
        (["--baseline", "none"], "'none'"),
    ):
        refused = CliRunner().invoke(app, ["report", str(runs), "-o", str(out), *wrong])
        assert (refused.exit_code, message in refused.stderr) == (2, True), refused.output


def test_a_strangers_classes_are_escaped(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "fedavg-0", tmp_path / "run")
    path = tmp_path / "run" / "evaluation.json"
    kept = json.loads(path.read_text())
    kept["classes"][3] = "<script>alert(1)</script>"
    path.write_text(json.dumps(kept))
    out = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run"), "-o", str(out)]).exit_code == 0
    assert "&lt;script&gt;alert(1)" in out.read_text()
    assert "<script>alert" not in out.read_text()


@pytest.mark.parametrize(
    "title", ["What crossed the network", "Scores at the end", "Confusion matrices", "Calibration"]
)
def test_the_page_has_these_parts(page_file: Path, title: str) -> None:
    assert f"<h3>{title}</h3>" in page_file.read_text()

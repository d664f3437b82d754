"""Rows whose runs start from the best model of another row's run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import TINY, lines, merged
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.errors import InputError
from fedkd.exports.of_run import model_of_run
from fedkd.published import chain, results, tables
from fedkd.published.tables import PublishedTable
from fedkd.runs.run import run

RUNNER = CliRunner()
FIRST = {"method": "FedAvg", "cell": "c", "set": {"checkpoint": {"best": "global/accuracy"}}}
STARTED = {
    "method": "LG", "cell": "own", "start": {"row": "fedavg-c"}, "paper": {"value": 50.0},
    "set": {"strategy": {"name": "lg_fedavg", "measured": "best"}},
    "reading": {"name": "best", "metric": "personal/accuracy"},
}  # fmt: skip
READ = {
    "method": "LG", "cell": "new", "runs": "lg-own",
    "reading": {"name": "at_best", "metric": "global/accuracy", "of": "personal/accuracy"},
}  # fmt: skip
OTHER = {"method": "Other", "cell": "c"}


def a_chain(rows: list[dict[str, Any]], **changes: Any) -> PublishedTable:
    reading = {"name": "best", "metric": "global/accuracy"}
    settings = merged(TINY, {"rounds": 3, "train.optimizer": {"name": "sgd", "lr": 2.0}})
    whole = {"title": "t", "paper": "p", "code": "c", "reading": reading, "settings": settings, "quick": {"rounds": 1}}
    return PublishedTable.model_validate({**whole, "rows": rows, "seeds": 1, **changes})


def a_file(home: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Write a table to a file; return the words of the command that runs it."""
    (home / "table.toml").write_text(tomli_w.dumps(a_chain(rows).model_dump(exclude_none=True)))
    return ["reproduce", str(home / "table.toml"), "--out", str(home / "out")]


@pytest.mark.parametrize(
    "wrong",
    [
        {**STARTED, "start": {"row": "nobody"}},
        {**STARTED, "start": {"row": "lg-own"}},  # itself
        {**STARTED, "cell": "again", "start": {"row": "lg-own"}},
        {**STARTED, "start": {"row": "lg-new"}},
        {**READ, "cell": "again", "start": {"row": "fedavg-c"}},
        {**STARTED, "start": {"row": "other-c"}},
    ],
)
def test_a_start_must_name_another_row_with_runs_of_its_own(wrong: dict[str, Any], tmp_path: Path) -> None:
    grid = {**OTHER, "grid": {"key": "train.epochs", "values": [1, 2]}}
    rows = [FIRST, STARTED, READ, grid] if wrong["cell"] == "again" else [FIRST, READ, grid]
    whole = a_chain([FIRST]).model_dump(exclude_none=True) | {"rows": [*rows, wrong]}
    (tmp_path / "table.toml").write_text(tomli_w.dumps(whole))
    message = rf"start.row = '{wrong['start']['row']}' of 'lg-.*' must name another row, .*no grid: fedavg-c;"
    with pytest.raises(InputError, match=message):
        tables.read(str(tmp_path / "table.toml"))


def test_the_first_row_is_run_even_if_only_a_reading_of_the_started_one_is_chosen(tmp_path: Path) -> None:
    table = a_chain([FIRST, STARTED, READ, OTHER])
    first, started = chain.stages(table, table.chosen(["lg-new"]))
    assert ([row.name for row in first], [row.name for row in started]) == (["fedavg-c"], ["lg-own"])
    first, started = chain.stages(table, table.rows)
    assert ([row.name for row in first], [row.name for row in started]) == (["fedavg-c", "other-c"], ["lg-own"])
    config = table.configs_of(table.rows[2], seed=1, out=tmp_path)["lg-own"]
    wanted = str(tmp_path.resolve() / "starts" / "fedavg-c,seed=1.safetensors")
    assert config.model.model_extra == {"hidden": [16], "weights": wanted}


@pytest.mark.xdist_group("ray")
def test_the_command_runs_a_chain_and_goes_on(tmp_path: Path) -> None:
    """The best round of FedAvg with large steps is not its last; LG-FedAvg's round 0 measures what it starts from."""
    words = a_file(tmp_path, [FIRST, STARTED, READ])
    ran = RUNNER.invoke(app, [*words, "--rows", "lg-new", "--seeds", "2"])
    assert ran.exit_code == 0, ran.output
    for seed in (0, 1):
        before, after = (lines(tmp_path / "out" / f"{name},seed={seed}") for name in ("fedavg-c", "lg-own"))
        best = max(line["metrics"]["global/accuracy"] for line in before)
        assert best > before[-1]["metrics"]["global/accuracy"]
        assert after[0]["metrics"]["global/accuracy"] == best
        start = load_file(tmp_path / "out" / "starts" / f"fedavg-c,seed={seed}.safetensors")
        kept = model_of_run(tmp_path / "out" / f"fedavg-c,seed={seed}", which="best").module.state_dict()
        assert all(start[name].equal(tensor) for name, tensor in kept.items())
    rows = {row["row"]: row for row in json.loads((tmp_path / "out" / "result.json").read_text())["rows"]}
    chosen = max(after, key=lambda line: line["metrics"]["personal/accuracy"])["metrics"]
    assert rows["lg-new"]["settings"][0]["numbers"]["1"] == [pytest.approx(100 * chosen["global/accuracy"])]
    shutil.rmtree(tmp_path / "out" / "lg-own,seed=1")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/*") if file.is_file()}
    again = RUNNER.invoke(app, [*words, "--seeds", "2"])
    assert again.exit_code == 0, again.output
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert lines(tmp_path / "out" / "lg-own,seed=1") == after


@pytest.mark.xdist_group("ray")
def test_a_run_whose_first_run_has_failed_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    broken = {**FIRST, "cell": "broken", "set": {**FIRST["set"], "faults": {"error": 1.0}}}  # type: ignore[dict-item]
    words = a_file(tmp_path, [broken, FIRST, {**STARTED, "start": {"row": "fedavg-broken"}}, {**STARTED, "cell": "b"}])
    ran = RUNNER.invoke(app, words)
    assert ran.exit_code == 1, ran.output
    said = " ".join(ran.output.split())
    assert "lg-own,seed=0 is not run: it starts from the run fedavg-broken,seed=0, which has not finished" in said, said
    assert "2 runs failed, as said above: fedavg-broken,seed=0, lg-own,seed=0" in said
    assert lines(tmp_path / "out" / "lg-b,seed=0")[-1]["round"] == 3
    assert not (tmp_path / "out" / "lg-own,seed=0").exists()


def test_a_first_run_without_a_best_round_is_named(tmp_path: Path) -> None:
    table = a_chain([{**FIRST, "set": {}}, STARTED])
    (first,) = results.jobs_of(table, table.rows[:1], 1, tmp_path).jobs
    run(first.config, first.path)
    plan, unstarted = chain.started_jobs(table, table.rows[1:], 1, tmp_path)
    assert plan.jobs == []
    assert "fedavg-c,seed=0, which has no model to start from" in unstarted["lg-own,seed=0"]
    assert "set checkpoint.best" in unstarted["lg-own,seed=0"]

"""Published tables of distillations: their rows, the accuracies of all networks, and a second call."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from helpers import merged
from helpers.sets import real_set
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import Sgd, to_table
from fedkd.errors import InputError, RunError
from fedkd.published import distillations, results, tables
from fedkd.published.tables import PublishedTable

RUNNER = CliRunner()
TABLES = [name for name in tables.names() if tables.read(name).kind == "distill"]
ROWS = [(name, row.name) for name in TABLES for row in tables.read(name).rows]
FIRST = [(name, tables.read(name).rows[0].name) for name in TABLES]
READING = {"name": "networks", "metric": "test/accuracy", "spread": "numbers"}
WHOLE: dict[str, Any] = {
    "title": "t",
    "kind": "distill",
    "paper": "p",
    "code": "c",
    "seeds": 2,
    "reading": READING,
    "settings": {
        "iterations": 3,
        "ipc": 1,
        "initial": "noise",
        "data": {"name": "digits", "train_per_class": 10},
        "model": {"name": "convnet", "channels": [4]},
        "distiller": {"name": "dc", "real_batch": 8},
        "evaluate": {"every": 3, "networks": 2, "epochs": 2},
        "checkpoint": {"every": 1},
    },
    "quick": {"iterations": 1},
    "rows": [
        {"method": "DC", "cell": "digits", "paper": {"value": 50.0, "spread": 1.0}},
        {"method": "DM", "cell": "digits", "set": {"distiller": {"name": "dm"}}},
    ],
}


def a_table(**changes: Any) -> PublishedTable:
    return PublishedTable.model_validate(WHOLE | changes)


def by_hand(table: PublishedTable, out: Path, seed: int, accuracies: list[float]) -> Path:
    """Write the folder of a finished distillation of the table's first row, whose networks have these accuracies."""
    ((name, config),) = distillations.configs_of(table, table.rows[0], seed=seed).items()
    path = out / f"{name},seed={seed}"
    path.mkdir(parents=True)
    (path / "config.toml").write_text(tomli_w.dumps(to_table(config)))
    metrics = [{"test/accuracy": 0.1}, {"test/accuracy": float(np.mean(accuracies))}]
    networks = [{"networks": {"test/accuracy": [0.1, 0.1]}}, {"networks": {"test/accuracy": accuracies}}]
    rows = zip((0, 3), metrics, networks, strict=True)
    text = [json.dumps({"iteration": n, "metrics": m, "seconds": 1.0, **more}) + "\n" for n, m, more in rows]
    (path / "metrics.jsonl").write_text("".join(text))
    summary = {"status": "completed", "versions": {}, "seconds": {"total": 60.0}}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.mark.parametrize(
    ("name", "row"), [pytest.param(*one, marks=[] if one in FIRST else pytest.mark.slow) for one in ROWS]
)
def test_each_row_runs_two_tiny_iterations(
    name: str, row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "mnist.npz", **{key: array[:2000] for key, array in real_set("mnist").items()})
    monkeypatch.setenv("FEDKD_DATA", str(tmp_path))
    table = tables.read(name)
    jobs = distillations.jobs_of(table, [one for one in table.rows if one.name == row], 1, tmp_path / "x", quick=True)
    assert distillations.run_jobs(jobs, tmp_path / "x", io.StringIO()) == {}
    found = {one.row.name: one for one in results.outcomes(table, tmp_path / "x", quick=True)}[row]
    assert found.agrees is None
    assert found.ours is not None
    assert len(found.ours.numbers[0]) == jobs[0].config.evaluate.networks


def test_condensation_of_mnist_has_the_settings_of_its_authors() -> None:
    """As in main.py and utils.py of VICO-UoE/DatasetCondensation at 53f63a6."""
    table = tables.read("dc-mnist")
    assert table.seeds == 5
    for row in table.rows:
        (config,) = distillations.configs_of(table, row).values()
        dsa = row.method == "DSA"
        groups = ["color", "crop", "cutout", "scale", "rotate"]
        assert config.iterations == 1000
        assert config.initial == ("real" if dsa else "noise")
        assert config.ipc == (10 if "10 images" in row.cell else 1)
        assert config.distiller.name == row.method.lower()
        own = {"lr": 0.1, "momentum": 0.5, "real_batch": 256, "network_lr": 0.01, "train_batch": 256}
        own |= {"distance": "rows", "outer": None, "inner": None, "augment": groups if dsa else []}
        assert config.distiller.options == own
        test = config.evaluate
        assert (test.networks, test.epochs, test.batch_size) == (20, 1001, 256)
        assert test.optimizer == Sgd(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
        assert test.augment == (groups if dsa else "dc")


def test_a_figure_is_of_all_networks_of_all_sets(tmp_path: Path) -> None:
    table = a_table()
    by_hand(table, tmp_path, 0, [0.40, 0.50])
    by_hand(table, tmp_path, 1, [0.55, 0.51])
    found = results.outcomes(table, tmp_path)
    ours = found[0].ours
    assert ours is not None
    assert ours.numbers == {0: pytest.approx([40.0, 50.0]), 1: pytest.approx([55.0, 51.0])}
    assert ours.value == pytest.approx(49.0)
    assert ours.spread == pytest.approx(np.sqrt((9**2 + 1 + 6**2 + 2**2) / 4))
    assert [one.agrees for one in found] == [True, None]
    assert results.as_text(table, found)[1][0] == [
        "DC, digits", "50.00 ± 1.00", "", "49.00 ± 5.52", "-1.00", "yes", "2", "1.0",
    ]  # fmt: skip
    record = results.as_record("t", table, found, tmp_path, quick=False)["rows"][0]["settings"][0]
    assert record["numbers"]["1"] == pytest.approx([55.0, 51.0])
    assert record["curves"] == {"0": [[0, 0.1], [3, 0.45]], "1": [[0, 0.1], [3, 0.53]]}


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    table = a_table()
    path = by_hand(table, tmp_path / "old", 0, [0.4, 0.5])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(one | {"networks": {}}) + "\n" for one in lines))
    with pytest.raises(InputError, match="test/accuracy of each network was not kept; run it again in a new folder"):
        results.outcomes(table, tmp_path / "old")
    path = by_hand(table, tmp_path / "short", 0, [0.4, 0.5])
    (path / "metrics.jsonl").write_text((path / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"its metrics.jsonl ends with iteration 0 of 3; lines were lost"):
        distillations.read(path)
    path = by_hand(table, tmp_path / "other", 0, [0.4, 0.5])
    with pytest.raises(InputError, match=r"contains a run with another config: evaluate.networks was 2, is 9"):
        results.outcomes(a_table(settings=merged(WHOLE["settings"], {"evaluate.networks": 9})), tmp_path / "other")


def test_networks_are_of_distillations() -> None:
    with pytest.raises(ValueError, match="reading.name = 'networks' is of distillations; set kind"):
        a_table(kind="run")
    with pytest.raises(InputError, match=r"t, dc-digits: .*iteration"):
        distillations.configs_of(a_table(settings=WHOLE["settings"] | {"iteration": 3}), a_table().rows[0])


def test_the_command_runs_a_table_of_distillations_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.toml").write_text(tomli_w.dumps(WHOLE))
    words = ["reproduce", str(tmp_path / "table.toml"), "--out", str(tmp_path / "out")]
    first = RUNNER.invoke(app, [*words, "--rows", "DC"])
    assert first.exit_code == 0, first.output
    assert "not run" in first.stdout
    asked: list[str] = []
    begin = distillations.distill
    monkeypatch.setattr(
        distillations, "distill", lambda config, out, show: asked.append(out.name) or begin(config, out, show)
    )
    monkeypatch.setattr(distillations, "resume", lambda path, show, **more: asked.append(path.name))
    again = RUNNER.invoke(app, words)
    assert again.exit_code == 0, again.output
    assert asked == ["dm-digits,seed=0", "dm-digits,seed=1"]
    third = RUNNER.invoke(app, words)
    assert third.exit_code == 0, third.output
    assert len(asked) == 2
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    numbers = [row["settings"][0]["numbers"] for row in kept["rows"]]
    assert [[len(found) for found in one.values()] for one in numbers] == [[2, 2], [2, 2]]


def test_an_interrupted_distillation_goes_on_and_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = a_table(seeds=1)

    def run(out: Path) -> dict[int, list[float]]:
        assert distillations.run_jobs(distillations.jobs_of(table, table.rows[:1], 1, out), out, io.StringIO()) == {}
        found = results.outcomes(table, out)[0].ours
        assert found is not None
        return found.numbers

    def interrupted(progress: Any, number: int, total: int, metrics: dict[str, float]) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(distillations.Progress, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "halves")
    assert results.outcomes(table, tmp_path / "halves")[0].ours is None
    begun: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(distillations.Progress, "advance", lambda progress, number, *_: begun.append(number))
        numbers = run(tmp_path / "halves")
    assert begun == [3]
    assert numbers == run(tmp_path / "whole")


def test_a_failed_distillation_is_named_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = distillations.distill

    def distill(config: Any, out: Path, show: Any) -> dict[str, Any]:
        if config.seed == 0:
            raise RunError("iteration 1: the images have diverged.")
        return begin(config, out, show)

    monkeypatch.setattr(distillations, "distill", distill)
    table, said = a_table(), io.StringIO()
    jobs = distillations.jobs_of(table, table.rows[:1], 2, tmp_path / "out")
    failed = distillations.run_jobs(jobs, tmp_path / "out", said)
    assert failed == {"dc-digits,seed=0": "iteration 1: the images have diverged."}
    assert "dc-digits,seed=0: iteration 1: the images have diverged." in said.getvalue()
    found = results.outcomes(table, tmp_path / "out")[0].ours
    assert found is not None
    assert list(found.numbers) == [1]


def test_wrong_input_is_refused_before_anything_runs(tmp_path: Path) -> None:
    table = a_table(settings=WHOLE["settings"] | {"data": {"name": "nothing"}})
    jobs = distillations.jobs_of(table, table.rows, 1, tmp_path / "out")
    with pytest.raises(InputError, match="dc-digits,seed=0: .*nothing"):
        distillations.run_jobs(jobs, tmp_path / "out", io.StringIO())
    assert not (tmp_path / "out").exists()

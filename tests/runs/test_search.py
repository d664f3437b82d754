"""Search of settings: its space, its trials, and that no trial sees a test sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import TINY, lines, merged
from typer.testing import CliRunner

from fedkd import InputError
from fedkd.cli import app
from fedkd.config import Config, read_config, to_table
from fedkd.core.setup import make_setup
from fedkd.runs import search as searching
from fedkd.runs.results import read_run
from fedkd.runs.search import Range, search, space_of, whole_key

Make = Callable[..., Config]
pytest.importorskip("optuna")
CHANGES = {"strategy": "local", "rounds": 2, "evaluate.every": 1}
VARY = ["lr=0.001..0.5:log", "train.epochs=1..3", "batch_size=16,64"]
METRIC = "personal/accuracy"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(merged(TINY, CHANGES)))
    return path


def test_ranges_and_values_are_read_and_short_keys_are_found(tiny: Make) -> None:
    table = to_table(tiny(CHANGES))
    assert space_of([*VARY, "train.clip=0.5..2"], table) == {
        "train.optimizer.lr": Range(0.001, 0.5, log=True, whole=False),
        "train.epochs": Range(1, 3, log=False, whole=True),
        "train.batch_size": ["16", "64"],
        "train.clip": Range(0.5, 2, log=False, whole=False),
    }
    assert whole_key("rounds", table) == "rounds"


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("lr", "write key=low..high"),
        ("lr=0.3..0.1", "the lower end comes first"),
        ("lr=0..1:log", "a logarithmic range begins above 0"),
        ("lr=1e..2", "the ends of a range are numbers"),
        ("every=1..3", "several keys end with it: evaluate.every, checkpoint.every"),
    ],
)
def test_a_space_without_sense_is_refused(vary: str, message: str, tiny: Make) -> None:
    with pytest.raises(InputError, match=message):
        space_of([vary], to_table(tiny(CHANGES)))


def test_a_search_finds_the_best_trial_and_writes_its_config(source: Path, tmp_path: Path) -> None:
    found = search(source, [], VARY, METRIC, 4, 0, tmp_path / "out")
    assert [trial.number for trial in found.trials] == [0, 1, 2, 3]
    assert found.best.value == max(trial.value for trial in found.trials if trial.value is not None)
    winner = read_config(found.winner)
    assert winner.train.optimizer.lr == found.best.values["train.optimizer.lr"]
    assert winner.train.batch_size == int(found.best.values["train.batch_size"])
    assert winner.data.held_out is None
    folders = sorted((tmp_path / "out").glob("trial-*"))
    last = {read_run(folder).lines[-1]["metrics"][METRIC] for folder in folders}
    assert last == {trial.value for trial in found.trials}
    assert all(read_config(folder / "config.toml").data.held_out == 0.2 for folder in folders)


def test_no_trial_sees_a_test_sample(source: Path, tmp_path: Path) -> None:
    search(source, [], VARY, METRIC, 1, 0, tmp_path / "out")
    (folder,) = (tmp_path / "out").glob("trial-*")
    trial, plain = (
        make_setup(read_config(path)).environment.data
        for path in (folder / "config.toml", tmp_path / "out/winner.toml")
    )
    tests = {image.tobytes() for image in plain.test.inputs}
    used = {image.tobytes() for part in (trial.train, trial.test) for image in part.inputs}
    assert not used & tests
    assert len(trial.train.labels) + len(trial.test.labels) == len(plain.train.labels)
    assert not {image.tobytes() for image in trial.test.inputs} & {image.tobytes() for image in trial.train.inputs}


def test_an_interrupted_search_goes_on_with_the_same_trials(source: Path, tmp_path: Path) -> None:
    whole = search(source, [], VARY, METRIC, 4, 0, tmp_path / "whole")
    seen: list[Any] = []

    def interrupt(record: Any) -> Any:
        seen.append(record.number)
        if len(seen) == 8:  # in the third trial, after its round 1
            raise KeyboardInterrupt
        return original(record)

    original = searching.runs.to_line
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching.runs, "to_line", interrupt)
        with pytest.raises(KeyboardInterrupt):
            search(source, [], VARY, METRIC, 4, 0, tmp_path / "out")
    found = search(source, [], VARY, METRIC, 4, 0, tmp_path / "out")
    assert [(t.values, t.value) for t in found.trials] == [(t.values, t.value) for t in whole.trials]
    assert found.best.values == whole.best.values
    for folder in (tmp_path / "whole").glob("trial-*"):
        assert lines(tmp_path / "out" / folder.name) == lines(folder)


def test_a_trial_that_is_worse_than_the_median_is_stopped(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_STARTUP", 1)  # the second trial is compared already
    found = search(source, ["rounds=3"], ["lr=1e-9..0.05:log"], METRIC, 6, 0, tmp_path / "out")
    stopped = [trial for trial in found.trials if trial.state == "stopped early"]
    assert stopped
    rates = [trial.values["train.optimizer.lr"] for trial in stopped]
    assert max(rates) < found.best.values["train.optimizer.lr"]
    ended = [len(lines(folder)) - 1 for folder in (tmp_path / "out").glob("trial-*")]
    assert sum(rounds < 3 for rounds in ended) == len(stopped)


def test_another_search_in_the_same_folder_and_an_unknown_metric_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--metric = 'global/accuracy': this run does not measure it"):
        search(source, [], VARY, "global/accuracy", 1, 0, tmp_path / "out")
    with pytest.raises(InputError, match="it has another search"):
        search(source, [], VARY[:1], METRIC, 1, 0, tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="the folder contains other files"):
        search(source, [], VARY, METRIC, 1, 0, tmp_path / "used")


def test_the_command_shows_trials_and_how_to_run_the_winner(source: Path, tmp_path: Path) -> None:
    words = ["sweep", str(source), "--vary", "lr=0.01..0.1", "--budget", "2", "--metric", METRIC]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "trial 2/2  train.optimizer.lr=" in done.stderr
    assert f"next: fedkd sweep {tmp_path}/out/winner.toml --seeds 1..3" in done.stdout
    refused = CliRunner().invoke(app, ["sweep", str(source), "--budget", "2"])
    assert (refused.exit_code, "--budget and --metric belong together" in refused.stderr) == (2, True)

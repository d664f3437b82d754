"""The leaderboard: its protocol on all strategies, and from start to end on tiny runs of digits."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import HOME, SETS, TINY, merged

from fedkd.registry import find, names
from fedkd.runs.results import read_run
from fedkd.runs.run import rounds, run

sys.path.insert(0, str(HOME / "benchmarks"))
import leaderboard
import leaderboard_methods as rules
import leaderboard_page

BOARD = ("digits", 0.5)


def test_each_strategy_is_on_the_board_or_left_out_for_a_reason() -> None:
    assert sorted([*rules.METHODS, *rules.LEFT_OUT]) == names("strategies")
    assert all(why.endswith(".") for why in rules.LEFT_OUT.values())


def test_each_set_has_a_config_and_nothing_else_is_there() -> None:
    assert sorted(path.stem for path in rules.CONFIGS.iterdir()) == sorted(rules.SETS)


@pytest.mark.parametrize("name", rules.METHODS)
def test_the_knobs_of_a_method_are_options_of_its_strategy(name: str) -> None:
    method, found = rules.METHODS[name], find("strategies", name, "x")
    assert len(method.knobs) <= 2
    options = {field.name: field for field in dataclasses.fields(found) if field.init}
    assert {*method.knobs, *method.fixed, *method.images} <= options.keys()
    for key, value in method.fixed.items():
        assert value != options[key].default, f"{key} is fixed to its default"
    searched = rules.trials(method)
    assert [settings["lr"] for settings in searched] == list(rules.RATES)
    for key, values in method.knobs.items():
        assert {settings[key] for settings in searched} == set(values), f"a value of {key} is never tried"
    for settings in searched:
        config = rules.config_of("mnist", 0.1, name, settings, 100, held_out=True)  # refuses values out of range
        assert config.data.held_out == 0.2
        assert config.train.optimizer.lr == settings["lr"]
        assert all(config.strategy.options[key] == settings[key] for key in method.knobs)
    on_table = rules.config_of("rodents", 0.5, name, searched[0], 0, held_out=False)
    assert on_table.data.held_out is None
    assert not method.images.keys() & rules.table_of("rodents", 0.5, name, searched[0])["strategy"].keys()


def test_trials_try_as_many_combinations_as_they_can() -> None:
    def combinations(**knobs: tuple[int, ...]) -> list[tuple[int, ...]]:
        found = rules.trials(rules.Method(rules.GLOBAL, 1.0, knobs))
        return [tuple(one[key] for key in knobs) for one in found]

    two, three, four = (1, 2), (1, 2, 3), (1, 2, 3, 4)
    assert len(set(combinations())) == 1
    assert sorted(combinations(a=two)) == [(1,)] * 4 + [(2,)] * 4
    assert sorted(combinations(a=four)) == sorted([(value,) for value in four] * 2)
    assert len(set(combinations(a=two, b=two))) == 4
    assert len(set(combinations(a=three, b=three))) == 8
    assert len(set(combinations(a=four, b=four))) == 8
    tried = combinations(a=four, b=three)
    assert all(before[0] != after[0] and before[1] != after[1] for before, after in pairwise(tried))


@pytest.mark.slow
def test_every_method_serves_series_and_measures_its_result_on_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SETS.is_dir():
        pytest.skip("needs the real sets beside the project")
    monkeypatch.setenv("FEDKD_DATA", str(SETS))
    assert leaderboard.refusals(("spoken_digits", 0.1), rules.METHODS) == {}
    for name, method in rules.METHODS.items():
        settings = rules.trials(method)[3]
        config = rules.config_of("rodents", 0.5, name, settings, 100, held_out=True)
        run(config.model_copy(update={"rounds": 1}), tmp_path / name)
        found = read_run(tmp_path / name)
        assert found.measured(method.result), name
        assert found.of_nodes(rules.PERSONAL), name


def test_the_page_is_that_of_the_kept_results() -> None:
    page = leaderboard_page.page(leaderboard.read_rows(HOME / "docs"))
    assert (HOME / "docs" / "leaderboard.md").read_text() == page, "run `python benchmarks/leaderboard.py --write`"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that runs the command on a tiny board, and returns the page."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.toml").write_text(tomli_w.dumps(TINY))
    monkeypatch.setattr(rules, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(rules, "SETS", {"digits": rules.Set("Digits", rules.IMAGES, 1.0)})
    monkeypatch.setattr(rules, "ALPHAS", (0.5,))
    monkeypatch.setattr(rules, "RATES", (0.05, 0.2))
    monkeypatch.setattr(rules, "SEEDS", (0, 1))
    methods = {name: rules.METHODS[name] for name in ("fedavg", "local", "fedmd")}
    monkeypatch.setattr(rules, "METHODS", methods)

    def does(*words: str, docs: Path = tmp_path / "docs") -> str:
        docs.mkdir(exist_ok=True)
        places = ["--out", str(docs / "runs"), "--docs", str(docs)]
        monkeypatch.setattr(sys, "argv", ["leaderboard.py", *words, *places])
        leaderboard.main()
        page = docs / "leaderboard.md"
        return page.read_text() if page.exists() else ""

    return does


def line_of(page: str, name: str) -> list[str]:
    """Return the cells of a method's line in the only table of results."""
    (line,) = [line for line in page.split("## Digits")[1].splitlines() if line.startswith(f"| [`{name}`]")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


def results(docs: Path) -> Any:
    """Return the kept results without what depends on the clock and the commit."""
    rows = json.loads((docs / "leaderboard" / "digits-0.5.json").read_text())
    for row in rows.values():
        del row["made"]
        for one in row.get("runs", []):
            del one["seconds"]
    return rows


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("cluster")
def test_a_board_is_tuned_run_and_written_and_goes_on_after_a_kill(
    tiny: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tiny()
    rows = results(tmp_path / "docs")
    assert {one["settings"]["lr"] for one in rows["fedavg"]["trials"]} == {0.05, 0.2}
    for name, place in (("fedavg", rules.GLOBAL), ("local", rules.PERSONAL)):
        values = [one["value"] for one in rows[name]["trials"]]
        assert values[rows[name]["winner"]] == max(values)
        cells = line_of(page, name)
        of_seeds = [run[place] for run in rows[name]["runs"]]
        assert cells[0 if name == "fedavg" else 2] == f"{50 * sum(of_seeds):.1f}"  # two seeds have no interval
        assert cells[-1].startswith(f"lr {(0.05, 0.2)[rows[name]['winner']]}")
    assert [run["seed"] for run in rows["local"]["runs"]] == [0, 1]
    assert all(run["worst"] <= run[rules.PERSONAL] for run in rows["local"]["runs"])
    assert "data.public" in rows["fedmd"]["reason"]
    assert line_of(page, "fedmd")[0].startswith("cannot run: ")
    assert line_of(page, "fedmd")[1:] == ["–"] * 8
    assert page == leaderboard_page.page(leaderboard.read_rows(tmp_path / "docs"))
    tiny("--list")
    assert "0.0 hours left" in capsys.readouterr().out

    other = tmp_path / "other"  # killed: trial 1 in its second round, when trial 0 had ended
    first, second = leaderboard.trial_jobs(BOARD, "fedavg", other / "runs")
    before = leaderboard.trial_jobs(BOARD, "fedavg", tmp_path / "docs" / "runs")
    shutil.copytree(before[0].path, first.path)
    playing = rounds(second.config, tmp_path / "killed")
    next(playing)
    next(playing)
    shutil.copytree(tmp_path / "killed", second.path)
    playing.close()
    assert tiny("--write", docs=other).count("| not run |") > 0
    assert "digits/0.5         1 of 12 runs" in said(capsys, lambda: tiny("--list", docs=other))
    begun: list[str] = []
    inner = leaderboard.run_jobs

    def noted(jobs: Any, *more: Any, **options: Any) -> Any:
        begun.extend(job.name for job in jobs)
        return inner(jobs, *more, **options)

    monkeypatch.setattr(leaderboard, "run_jobs", noted)
    tiny(docs=other)
    assert results(other) == rows
    assert first.name not in begun
    assert second.name in begun
    begun.clear()
    tiny(docs=other)
    assert begun == []


def said(capsys: pytest.CaptureFixture[str], does: Callable[[], object]) -> str:
    """Return what a function prints."""
    capsys.readouterr()
    does()
    return capsys.readouterr().out


def row(board: tuple[str, float], name: str, runs: list[dict[str, Any]], rate: float = 0.05) -> dict[str, Any]:
    """Return kept results as the command writes them."""
    trials = [{"settings": {"lr": rate}, "value": 0.5}]
    costs = {"megabytes": 12.0, "seconds": 3.0}
    made = {"protocol": leaderboard.protocol(board, name), "made": "some day"}
    return made | {
        "trials": trials,
        "winner": 0,
        "runs": [costs | {"seed": seed} | one for seed, one in enumerate(runs)],
    }


def test_differences_are_paired_and_tested(tiny: Callable[..., str]) -> None:
    local = [0.7, 0.71, 0.72, 0.73, 0.74]
    gains = [0.1, 0.11, 0.1, 0.09, 0.1]
    rows = {
        "local": row(BOARD, "local", [{rules.PERSONAL: value, "worst": value - 0.1} for value in local], 0.1),
        "fedmd": row(BOARD, "fedmd", [{rules.PERSONAL: a + b} for a, b in zip(local, gains, strict=True)]),
        "fedavg": row(BOARD, "fedavg", [{rules.GLOBAL: 0.5, rules.PERSONAL: 0.6}] * 4 + [{"reason": "it diverged"}]),
    }
    page = leaderboard_page.page({BOARD: rows})
    assert line_of(page, "local") == [
        "–", "–", "72.0 (70.0 to 74.0)", "–", "–", "62.0 (60.0 to 64.0)", "12", "3", "lr 0.1",
    ]  # fmt: skip
    assert line_of(page, "fedmd")[4] == "**+10.0 (p < 0.001)**"  # FedAvg, which has failed on a seed, is no baseline
    assert line_of(page, "fedmd")[3] == "–"
    assert line_of(page, "fedmd")[-1] == "lr 0.05 (end of the range)"
    assert line_of(page, "fedavg")[0] == "1 of 5 seeds failed: it diverged"


def test_results_of_another_protocol_are_not_shown(
    tiny: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaderboard.keep(BOARD, {"local": row(BOARD, "local", [{rules.PERSONAL: 0.7}] * 2)}, tmp_path)
    assert line_of((tmp_path / "leaderboard.md").read_text(), "local")[2] == "70.0"
    (rules.CONFIGS / "digits.toml").write_text(tomli_w.dumps(merged(TINY, {"rounds": 3})))
    leaderboard.keep(BOARD, {}, tmp_path)
    assert set(line_of((tmp_path / "leaderboard.md").read_text(), "local")) == {"not run"}

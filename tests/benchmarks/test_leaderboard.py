"""The leaderboard: one protocol for all strategies, and its page from start to end on two of them."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import HOME, TINY, merged

from fedkd.config import read_config, to_table
from fedkd.registry import names


def test_each_strategy_has_a_config_and_they_differ_in_the_strategy_alone() -> None:
    tables: dict[str, dict[str, Any]] = {}
    for path in (HOME / "configs" / "leaderboard").glob("*.toml"):
        tables[path.stem] = to_table(read_config(path))
    assert sorted(tables) == names("strategies")
    for name, table in tables.items():
        assert table.pop("strategy")["name"] == name
        assert table == {key: value for key, value in tables["fedavg"].items() if key != "strategy"}, name


def test_the_page_is_made_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HOME / "benchmarks")
    import leaderboard

    monkeypatch.setattr(leaderboard, "SETS", ("digits",))
    monkeypatch.setattr(leaderboard, "SEEDS", "0..1")
    (tmp_path / "configs").mkdir()
    for name in ("fedavg", "local"):
        (tmp_path / "configs" / f"{name}.toml").write_text(tomli_w.dumps(merged(TINY, {"strategy": {"name": name}})))
    words = ["--out", str(tmp_path / "runs"), "--configs", str(tmp_path / "configs"), "--docs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *words])
    with pytest.raises(SystemExit) as ended:
        leaderboard.main()
    assert ended.value.code == 0
    page = (tmp_path / "leaderboard.md").read_text()
    assert "2 strategies under one protocol" in page
    assert "8 runs in" in page
    assert "| strategy | digits, α = 0.1 | digits, α = 0.5 |" in page
    (line,) = [line for line in page.splitlines() if line.startswith("| [`local`]")]
    assert line.count("](../configs/leaderboard/local.toml)") == 2
    assert (tmp_path / "runs" / "report.html").is_file()
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    mean = next(row for row in rows if row["strategy"] == "local" and row["metric"] == "personal/accuracy")
    assert f"{100 * float(mean['final_mean']):.1f}" in line
    assert ("±" in line, mean["final_deviation"]) == (False, "")  # two seeds have no deviation

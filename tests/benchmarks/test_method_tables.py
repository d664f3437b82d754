"""The tables of docs/methods: each has its place, a valid config, and is written of what has been run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import tomli_w
from helpers import HOME, TINY, merged

from fedkd.errors import InputError
from fedkd.runs.run import run


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HOME / "benchmarks")
    import tables

    return tables


def test_each_table_has_its_place_and_valid_runs(tables: ModuleType, tmp_path: Path) -> None:
    from method_tables import TABLES

    marks = [f"<!-- table: {table.name} -->" for table in TABLES]
    pages = {path.name: path.read_text() for path in (HOME / "docs" / "methods").glob("*.md")}
    for table, mark in zip(TABLES, marks, strict=True):
        assert pages[table.page].count(mark) == 1, table.name
        plans = tables.grids(table, tmp_path)
        assert len(plans) == len(table.arms), f"{table.name}: two arms have one label"
        for arm in table.arms:
            bases = {arm.base, *(column.minus for column in table.columns)} - {"", tables.BASE}
            assert bases <= plans.keys(), (table.name, arm.label)
    assert sum(page.count("<!-- table: ") for page in pages.values()) == len(marks)


def test_a_table_is_run_and_written_by_one_command(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "HOME", tmp_path)
    (tmp_path / "configs" / "fedavg").mkdir(parents=True)
    (tmp_path / "configs" / "fedavg" / "tiny.toml").write_text(tomli_w.dumps(TINY))
    (tmp_path / "configs" / "fedavg" / "mlp.toml").write_text(
        tomli_w.dumps(merged(TINY, {"model": {"name": "mlp", "hidden": [8]}, "rounds": 1}))
    )
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- table: one -->\n<!-- end -->\n\n<!-- table: two -->\nold\n<!-- end -->\nAfter.\n")
    arms = (
        tables.Arm("FedAvg"),
        tables.Arm("local", ('strategy={name="local"}',), base="FedAvg"),
    )
    columns = (
        tables.Column("global", tables.final, "global/accuracy"),
        tables.Column("round 1", tables.at(1), "personal/accuracy"),
        tables.Column("gain", tables.best, "personal/accuracy", minus=tables.BASE),
        tables.Column("node 0", tables.of_node(0), "personal/accuracy"),
        tables.Column("MB", tables.megabytes, scale=1.0),
    )
    one = tables.Table("one", "page.md", "fractions", "fedavg/tiny.toml", arms, columns, 2, "0..2")
    two = tables.Table("two", "page.md", "more", "fedavg/mlp.toml", arms[:1], columns, 1, "0..1")

    def does(*words: str) -> str:
        places = ["--out", str(tmp_path / "runs"), "--docs", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["method_tables.py", *words, *places])
        tables.main((one, two), "about")
        return page.read_text()

    for job in tables.grids(one, tmp_path / "runs")["FedAvg"].jobs[:2]:  # a part of the runs is there
        run(job.config, job.path)
    text = does("--write")
    assert "| local | not run | not run | not run | not run | not run |" in text
    assert "(2 of 3 seeds) |" in text
    assert "**4 of 6 runs are not run**; they take about 1 min of one core" in text
    done = grid_lines(text, "| FedAvg |")
    text = does("one")
    assert "not run" not in text.split("<!-- end -->")[0]
    local = grid_lines(text, "| local |")
    assert local.startswith("| local | – |")
    assert " ± " in local
    assert " of 3)" in local
    assert "seeds 0 to 2" in text
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "old" not in text
    assert done != grid_lines(text, "| FedAvg |")
    does("--list", "one")
    assert "6 of   6 runs" in capsys.readouterr().out

    page.write_text("no marks")
    with pytest.raises(InputError, match="has the marks of the table one 0 times"):
        tables.write(one, tmp_path / "runs", tmp_path)


def grid_lines(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))

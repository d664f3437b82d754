"""Figures of a comparison: their files, and the numbers beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers.runs_by_hand import Write, three_seeds
from PIL import Image

from fedkd.reports.compare import compare
from fedkd.reports.figures import write_figures
from fedkd.runs.results import find_runs


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_curves_and_nodes_are_drawn_with_their_numbers(write: Write, tmp_path: Path) -> None:
    found = compare(find_runs([three_seeds(write)])[0], names={"local": "Local $\\frac$"}, rows=["local", "fedavg"])
    paths = write_figures([found], tmp_path / "a", "paper")
    names = [f"personal-accuracy-{what}" for what in ("rounds", "megabytes", "seconds", "nodes")]
    assert {path.name for path in paths} == {f"{name}.{e}" for name in names for e in ("pdf", "svg", "png", "csv")}
    assert {path.parent for path in paths} == {tmp_path / "a"}
    assert all(path.stat().st_size > 100 for path in paths)
    assert Image.open(tmp_path / "a" / f"{names[0]}.png").width == 3.5 * 300
    assert b"/MediaBox [ 0 0 252 " in (tmp_path / "a" / f"{names[3]}.pdf").read_bytes()

    rounds = table(tmp_path / "a" / f"{names[0]}.csv")
    assert list(rounds[0]) == ["strategy", "round", "personal/accuracy (%)", "low", "high"]
    assert [(row["strategy"], row["round"]) for row in rounds] == [
        ("Local $\\frac$", "1"), ("Local $\\frac$", "2"), ("fedavg", "1"), ("fedavg", "2"),
    ]  # fmt: skip
    mean, deviation = 100 * (0.55 + 0.62 + 0.61) / 3, 3.785938897200182
    last = [float(rounds[1][name]) for name in ("personal/accuracy (%)", "low", "high")]
    assert last == pytest.approx([mean, mean - deviation, mean + deviation])
    traffic = table(tmp_path / "a" / f"{names[1]}.csv")
    assert [float(row["megabytes"]) for row in traffic] == pytest.approx([2.5, 4.0, 2.5, 4.0])
    assert [row["round"] for row in traffic] == ["1", "2", "1", "2"]
    seconds = table(tmp_path / "a" / f"{names[2]}.csv")
    assert [float(row["seconds"]) for row in seconds] == [4.0, 6.0, 4.0, 6.0]
    nodes = table(tmp_path / "a" / f"{names[3]}.csv")
    assert len(nodes) == 2 * 3 + 2 * 4
    assert float(nodes[0]["personal/accuracy (%)"]) == pytest.approx(45.0)
    assert [row["seed"] for row in nodes[:4]] == ["0", "0", "1", "1"]
    again = write_figures([found], tmp_path / "b", "paper")
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_each_group_has_its_folder_and_each_metric_its_figures(write: Write, tmp_path: Path) -> None:
    folder = three_seeds(write)
    lines = folder / "local-0" / "metrics.jsonl"
    lines.write_text(lines.read_text().replace("personal/accuracy", "probe/accuracy"))
    runs = find_runs([folder])[0]
    groups = [compare(runs, title="data.partition.alpha = 0.1", beside=("probe/accuracy",))]
    groups.append(compare(runs, title="../Größe: x", metric="personal/accuracy"))
    paths = write_figures(groups, tmp_path, "slides")
    homes = {path.parent.name: set() for path in paths}
    for path in paths:
        homes[path.parent.name].add(path.stem)
    assert sorted(homes) == ["1-data.partition.alpha-0.1", "2-gr-e-x"]
    assert all(path.parent.parent == tmp_path for path in paths)
    assert {f"{metric}-accuracy-rounds" for metric in ("personal", "probe")} < homes["1-data.partition.alpha-0.1"]
    probe = table(tmp_path / "1-data.partition.alpha-0.1" / "probe-accuracy-rounds.csv")
    assert {row["strategy"] for row in probe} == {"local"}
    assert Image.open(paths[2]).width == 10 * 144

"""Figures of a run: the same numbers as in its folder, no label on another, the same files for the same run."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import TINY, lines, merged
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config import Config, parse_config
from fedkd.errors import InputError
from fedkd.runs import charts
from fedkd.runs.figures import partition_name, redraw
from fedkd.runs.run import run
from fedkd.runs.scores import scores
from fedkd.runs.styles import SCREEN, STYLES, Style, in_style


def test_a_partition_within_domains_is_told_in_words(tiny: Callable[..., Config]) -> None:
    within = {"scheme": "dirichlet", "alpha": 0.5}
    config = tiny({"data.partition": {"scheme": "domains", "per_domain": 3, "within": within}})
    assert partition_name(config) == "domains (per_domain 3, within dirichlet (alpha 0.5))"
    assert partition_name(tiny({"data.partition": {"scheme": "domains"}})) == "domains"


@pytest.fixture(scope="module")
def fedftg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with figures of all kinds but weights and features."""
    folder = tmp_path_factory.mktemp("runs") / "fedftg"
    strategy = {"name": "fedftg", "iterations": 1, "student_steps": 1}
    run(parse_config(merged(TINY, {"strategy": strategy, "rounds": 3})), folder)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_the_figures_of_a_run_are_drawn_again_with_their_numbers(fedftg: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "figures"
    result = CliRunner().invoke(app, ["figures", str(fedftg), "-o", str(out)])
    assert result.exit_code == 0, result.output
    with_numbers = ("calibration", "confusion-global", "curves", "ensemble", "partition")
    pictures = ("generated",)
    wanted = {f"{name}.{ending}" for name in (*with_numbers, *pictures) for ending in ("pdf", "svg", "png")}
    wanted |= {f"{name}.csv" for name in with_numbers}
    assert {path.name for path in out.iterdir()} == wanted
    assert all(f"written: {out / name}" in result.stdout for name in wanted)
    for name in (*with_numbers, *pictures):
        assert Image.open(out / f"{name}.png").width == 3.5 * 300

    rounds = lines(fedftg)
    found = {(row["metric"], int(row["round"])): row for row in table(out / "curves.csv")}
    assert len(found) == sum(name.endswith("/accuracy") for line in rounds for name in line["metrics"])
    for line in rounds:
        row = found["personal/accuracy", line["round"]]
        assert float(row["value"]) == line["metrics"]["personal/accuracy"]
        assert float(row["deviation_over_nodes"]) == line["spread"]["personal/accuracy"]["std"]
        assert found["global/accuracy", line["round"]]["deviation_over_nodes"] == ""
    kept = json.loads((fedftg / "partition.json").read_text())
    assert kept["columns"] == "class"
    held = table(out / "partition.csv")
    assert [[int(row[name]) for name in kept["classes"]] for row in held] == kept["counts"]
    assert [row["images"] for row in held] == ["24"] * 6
    last = rounds[-1]["log"]
    cells = table(out / "ensemble.csv")
    assert [float(c["value"]) for c in cells if c["panel"] == "weight of a teacher"] == [
        weight for row in last["ensemble_weights"] for weight in row
    ]
    shares = {(c["row"], c["column"]): float(c["value"]) for c in cells if c["panel"] == "label distribution"}
    assert [shares[name, "3"] for name in kept["classes"]] == last["label_distribution"]


def test_equal_runs_give_equal_files_and_slides_are_wider(fedftg: Path, tmp_path: Path) -> None:
    for out, style in (("a", "slides"), ("b", "slides"), ("c", "paper")):
        redraw(fedftg, tmp_path / out, style)  # type: ignore[arg-type]
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 23
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
        same = (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
        assert same == name.endswith(".csv"), name
    assert Image.open(tmp_path / "a" / "curves.png").width == 10 * 144


def test_what_cannot_be_drawn_is_named_and_the_rest_is_drawn(fedftg: Path, tmp_path: Path) -> None:
    shutil.copytree(fedftg, tmp_path / "run")
    (tmp_path / "run/figures/generated/round-000002.png").write_bytes(b"no picture")
    paths, (problem,) = redraw(tmp_path / "run", tmp_path / "out", "paper")
    assert problem.startswith("The figure generated cannot be drawn: ")
    assert {path.stem for path in paths} == {"calibration", "confusion-global", "curves", "ensemble", "partition"}
    with pytest.raises(InputError, match="there is no run"):
        redraw(tmp_path / "nothing", tmp_path / "out", "paper")
    for name in ("partition.json", "metrics.jsonl", "summary.json", "evaluation.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run/figures")
    with pytest.raises(InputError, match="run: there is nothing to draw"):
        redraw(tmp_path / "run", tmp_path / "none", "paper")


def labels_of(figure: Figure) -> list[tuple[str, Any]]:
    """Return the visible texts of a drawn figure, with their places."""
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        ticks = [label for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels() if on(axes, label)]
        texts += [*ticks, axes.xaxis.label, axes.yaxis.label, axes.title]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]


def on(axes: Axes, label: Any) -> bool:
    """Return whether a tick is within the axes; others are not drawn."""
    x, y = label.get_position()
    low, high = sorted(axes.get_xlim() if y == 0 else axes.get_ylim())
    return low - 1e-6 <= (x if y == 0 else y) <= high + 1e-6


CASES = {
    "curves": lambda style: charts.curves(
        [
            {"round": n, "metrics": {f"{s}/accuracy": 0.5 for s in ("global", "personal", *many)}, "spread": {}}
            for n in range(200)
        ],
        "a title", style,
    ),
    "few nodes": lambda style: charts.partition(parts(3, ["cat", "dog"]), "a title", style),
    "many nodes": lambda style: charts.partition(parts(300, list(map(str, range(100)))), "a title", style),
    "long names": lambda style: charts.partition(parts(20, [f"a long name {n}" for n in range(30)]), "t", style),
    "weights": lambda style: charts.weights((3, list(range(60)), np.eye(60)), "a title", style),
    "confusion": lambda style: charts.confusion(evaluated(40, "a long name "), "global", style),
    "few classes": lambda style: charts.confusion(evaluated(3, ""), "global", style),
    "calibration": lambda style: charts.calibration(evaluated(3, ""), style),
    "few weights": lambda style: charts.weights((3, [11, 2, 5], np.eye(3)), "a title", style),
}  # fmt: skip
many = [f"personal_after_something_{number}" for number in range(8)]


def evaluated(classes: int, name: str) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    found = scores(generator.normal(size=(500, classes)), generator.integers(0, classes, 500))
    return {"classes": [f"{name}{i}" for i in range(classes)], "models": {"global": found, "personal": found}}


def parts(nodes: int, classes: list[str]) -> dict[str, Any]:
    counts = [[1000 + node] * len(classes) for node in range(nodes)]
    sizes = [sum(row) for row in counts]
    names = [f"hospital {node}" for node in range(nodes)]
    return {"counts": counts, "sizes": sizes, "classes": classes, "nodes": names, "noun": "images", "columns": "class"}


@pytest.mark.parametrize("style", [STYLES["paper"], STYLES["slides"], SCREEN], ids=["paper", "slides", "screen"])
@pytest.mark.parametrize("case", CASES)
def test_no_label_is_on_another_or_cut_off(case: str, style: Style) -> None:
    with in_style(style):
        drawing = CASES[case](style)
        assert drawing is not None
        placed = labels_of(drawing.figure)
    assert len(placed) > 4
    for (one, box), (other, place) in combinations(placed, 2):
        overlap = min(box.x1, place.x1) - max(box.x0, place.x0), min(box.y1, place.y1) - max(box.y0, place.y0)
        assert min(overlap) <= 1, (one, other)  # pixels
    for text, box in placed:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= drawing.figure.bbox.width + 1, text
        assert box.y1 <= drawing.figure.bbox.height + 1, text

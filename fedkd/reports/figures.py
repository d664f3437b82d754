"""Figures of a comparison for a paper or slides: curves with bands over seeds, and each node's value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import on_one_line
from ..messages.metric_names import is_fraction
from ..runs.results import Arm
from ..runs.run_folder import make_folder
from ..runs.styles import STYLES, Drawing, Style, StyleName, in_style, legend, line_of, markers_at, write_drawing
from .compare import Comparison
from .series import AGAINST, Series, nodes_of, series_of

_LABELS = {"rounds": "round", "megabytes": "megabytes, both directions", "seconds": "seconds of rounds"}


def write_figures(comparisons: Sequence[Comparison], out: Path, style: StyleName) -> list[Path]:
    """Draw the curves and the nodes of each comparison's metrics; return the paths of all files.

    Of several comparisons, each has a folder of its own, named by its number and title.
    """
    paths = []
    for number, one in enumerate(comparisons, 1):
        words = re.sub(r"[^a-z0-9.]+", "-", one.title.lower()).strip("-.")[:80]
        home = out if len(comparisons) == 1 else out / f"{number}-{words}"
        make_folder(home)
        arms = [row.arm for row in one.rows]
        with in_style(STYLES[style]):
            for metric in dict.fromkeys((one.metric, *one.beside)):
                name = metric.replace("/", "-")
                for what in AGAINST:
                    series = [
                        series_of(arm, metric, what, i)
                        for i, arm in enumerate(arms)
                        if any(run.measured(metric) for run in arm.runs)
                    ]
                    paths += write_drawing(curves(series, metric, what, STYLES[style]), home, f"{name}-{what}")
                if (drawing := nodes(arms, metric, STYLES[style])) is not None:
                    paths += write_drawing(drawing, home, f"{name}-nodes")
    return paths


def curves(series: Sequence[Series], metric: str, what: str, style: Style) -> Drawing:
    """Draw means over seeds against rounds, megabytes or seconds, with bands of one deviation over seeds."""
    figure = Figure(figsize=(style.width, 0.61 * style.width), layout="constrained")
    axes = figure.subplots()
    entries, table = [], []
    for one in series:
        look = line_of(one.number)
        if any(low < high for low, high in zip(one.low, one.high, strict=True)):
            axes.fill_between(one.x, one.low, one.high, color=look["color"], alpha=0.16, linewidth=0)
        (line,) = axes.plot(one.x, one.y, markevery=markers_at(one.number, len(one.x)), **look)
        entries.append((on_one_line(one.name, 60), line))
        table += [(one.name, *row) for row in zip(one.rounds, one.x, one.y, one.low, one.high, strict=True)]
    axes.set(xlabel=_LABELS[what], ylabel=_unit(metric))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=what == "rounds"))
    axes.grid(alpha=0.35)
    legend(figure, entries, style)
    header = ["strategy", "round", *([what] if what != "rounds" else []), _unit(metric), "low", "high"]
    rows = [row if what != "rounds" else (*row[:2], *row[3:]) for row in table]
    return Drawing(figure, header, rows)


def nodes(arms: Sequence[Arm], metric: str, style: Style) -> Drawing | None:
    """Draw the last value of each node with each seed, a row of dots per arm, with their mean; None without values."""
    scale = 100.0 if is_fraction(metric) else 1.0
    found = [(i, arm, nodes_of(arm, metric)) for i, arm in enumerate(arms)]
    found = [one for one in found if one[2]]
    if not found:
        return None
    height = min((2.6 * len(found) + 4) * style.font / 72, style.tallest)
    figure = Figure(figsize=(style.width, height), layout="constrained")
    axes = figure.subplots()
    table: list[tuple[Any, ...]] = []
    for place, (number, arm, dots) in enumerate(found):
        look, values = line_of(number), [scale * value for _, _, value in dots]
        offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(
            values, place + offsets, s=style.marker**2, color=look["color"], marker=look["marker"], alpha=0.6,
            linewidths=0,
        )  # fmt: skip
        axes.plot([np.mean(values)] * 2, [place - 0.36, place + 0.36], color="black")
        table += [(arm.name, seed, node, scale * value) for seed, node, value in dots]
    axes.set(xlabel=_unit(metric), ylim=(len(found) - 0.5, -0.5))
    axes.set_yticks(range(len(found)), [on_one_line(arm.name, 24) for _, arm, _ in found])
    axes.grid(axis="x", alpha=0.35)
    return Drawing(figure, ("strategy", "seed", "node", _unit(metric)), table)


def _unit(metric: str) -> str:
    return f"{metric} (%)" if is_fraction(metric) else metric

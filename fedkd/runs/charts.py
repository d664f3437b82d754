"""Charts of a run: curves, the label heat map of its partition, its evaluation, what methods log: matrices, maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..core.log import drawable
from ..errors import on_one_line
from ..messages.metric_names import as_text, is_main, metric_range
from .styles import COLOURS, INK, Drawing, Style, cells, legend, line_of, markers_at

_CELL = ("panel", "row", "column", "value")  # of a matrix as a table


def curves(lines: list[dict[str, Any]], title: str, style: Style, ending: str | None = None) -> Drawing | None:
    """Draw metrics of a run over rounds, with a band of one deviation over nodes; None if there are none.

    By default the main ones, else those whose names end with `/<ending>`, such as `loss`.
    """
    every = sorted({name for line in lines for name in line["metrics"]})
    names = [name for name in every if (is_main(name) if ending is None else name.endswith(f"/{ending}"))]
    if not names:
        return None
    figure, axes = _figure((style.width, 0.61 * style.width), title, style)
    entries, table = [], []
    for number, name in enumerate(names):
        rows = [line for line in lines if name in line["metrics"]]
        rounds = [line["round"] for line in rows]
        values = np.array([line["metrics"][name] for line in rows])
        look = line_of(number)
        (line,) = axes.plot(rounds, values, markevery=markers_at(number, len(rounds)), **look)
        entries.append((f"{name}  {as_text(name, values[-1])}", line))
        spread = [line["spread"].get(name, {}).get("std") for line in rows]
        if None not in spread:
            low, high = (np.clip(values + side * np.array(spread), *metric_range(name)) for side in (-1, 1))
            axes.fill_between(rounds, low, high, color=look["color"], alpha=0.13, linewidth=0)
        table += [(name, *row) for row in zip(rounds, values.tolist(), spread, strict=True)]
    axes.set(xlabel="round", ylabel=names[0].rpartition("/")[2].replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    legend(figure, entries, style, "values at the end; band: one deviation over nodes")
    return Drawing(figure, ("metric", "round", "value", "deviation_over_nodes"), table)


def partition(kept: dict[str, Any], title: str, style: Style) -> Drawing:
    """Draw the nodes x classes heat map of a partition.json. Shade: the share of the node's samples; bars: its size."""
    counts, held, noun, classes = np.array(kept["counts"]), np.array(kept["sizes"]), kept["noun"], kept["classes"]
    nodes = [on_one_line(name, 24) for name in kept["nodes"] or map(str, range(len(counts)))]
    shares = np.minimum(counts / np.maximum(held, 1)[:, None], 1)
    width = float(np.clip(0.48 * len(classes) + 3.4, style.width, style.widest))
    size = width, float(np.clip(1.9 * style.small / 72 * (len(counts) + 4), 0.45 * style.width, style.tallest))
    figure = Figure(figsize=size, layout="constrained")
    heat, sizes = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    image = heat.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    room = (0.8 * (size[0] - 11 * style.font / 72), size[1] - 6 * style.font / 72)
    cells(heat, shares, [[str(count) if count else "" for count in row] for row in counts.tolist()], room, style)
    heat.set(xlabel=kept["columns"], ylabel="node", title=title if style.titled else "")
    _label(heat, "x", classes, room[0], style)
    _label(heat, "y", nodes, room[1], style)
    sizes.barh(range(len(counts)), held, color=COLOURS[0], height=0.8)
    sizes.set(xlabel=noun)
    sizes.xaxis.set_major_locator(MaxNLocator(2, integer=True))
    _bar(figure, image, sizes, "share of the node")
    rows = [[name, *row, whole] for name, row, whole in zip(nodes, counts.tolist(), held.tolist(), strict=True)]
    return Drawing(figure, ["node", *classes, noun], rows)


def weights(logged: tuple[int, list[Any], np.ndarray] | None, title: str, style: Style) -> Drawing | None:
    """Draw the last N x N matrix of weights that a run has logged (see `last_matrix`); None if there is none."""
    if logged is None:
        return None
    number, nodes, matrix = logged
    width = min(style.width, 6.2 if style.titled else style.tallest * 1.2)
    figure, axes = _figure((width, 0.8 * width), f"{title}, round {number}", style)
    image = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    side = 0.8 * width - 5 * style.font / 72
    cells(axes, matrix, _shares(matrix), (side, side), style)
    for axis in ("x", "y"):
        _label(axes, axis, [str(node) for node in nodes], side, style)
    axes.set(xlabel="sender", ylabel="receiver")
    _bar(figure, image, axes, "weight")
    return Drawing(figure, _CELL, _table("weight of a sender (column) for a receiver (row)", nodes, nodes, matrix))


def ensemble(lines: list[dict[str, Any]], classes: Sequence[str], title: str, style: Style) -> Drawing | None:
    """Draw the label distribution p_t(y) over rounds, and the last weight of each teacher for each class.

    None if the run has logged no such weights.
    """
    logged = [line for line in lines if drawable(line["log"], "label_distribution")]
    weighed = [line for line in logged if drawable(line["log"], "ensemble_weights", "teachers")]
    if not weighed:
        return None
    stacked = not style.titled and style.width < 6  # a column has no room for two panels side by side
    size = (style.width, min(1.5 * style.width, style.tallest)) if stacked else (1.6 * style.width, 0.64 * style.width)
    if not style.titled and not stacked:
        size = (style.width, 0.5 * style.width)
    figure = Figure(figsize=size, layout="constrained")
    over, last = figure.subplots(*((2, 1) if stacked else (1, 2)))
    rounds = [line["round"] for line in logged]
    shares = np.array([line["log"]["label_distribution"] for line in logged]).T
    most = max(float(shares.max()), 2 / len(classes))  # a uniform share is in the middle of the scale
    edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(classes) - 0.5, -0.5)
    image = over.imshow(shares, cmap="Blues", vmin=0, vmax=most, aspect="auto", interpolation="nearest", extent=edges)
    over.set(xlabel="round", ylabel="class", title="p_t(y): labels of the cohort")
    over.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bar(figure, image, over)
    matrix, nodes = np.array(weighed[-1]["log"]["ensemble_weights"]), weighed[-1]["log"]["teachers"]
    image = last.imshow(matrix, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    room = (
        size[0] / (1 if stacked else 2) - 8 * style.font / 72,
        size[1] / (2 if stacked else 1) - 5 * style.font / 72,
    )
    cells(last, matrix, _shares(matrix), room, style)
    _label(last, "x", [str(node) for node in nodes], room[0], style)
    last.set(xlabel="node", ylabel="class", title=f"weight of each teacher, round {weighed[-1]['round']}")
    _bar(figure, image, last)
    for axes in (over, last):
        _label(axes, "y", classes, room[1], style)
    if style.titled:
        figure.suptitle(title)
    table = _table("label distribution", classes, rounds, shares) + _table(
        "weight of a teacher", classes, nodes, matrix
    )
    return Drawing(figure, _CELL, table)


def features(lines: list[dict[str, Any]], classes: Sequence[str], title: str, style: Style) -> Drawing | None:
    """Draw the last two-dimensional feature map that a run has logged, a marker and a name per class; None without."""
    logged = [line for line in lines if drawable(line["log"], "feature_map")]
    if not logged:
        return None
    points = np.array(logged[-1]["log"]["feature_map"]["points"])
    labels = np.array(logged[-1]["log"]["feature_map"]["labels"])
    names = [*classes, *map(str, range(len(classes), int(labels.max()) + 1))]
    width = min(style.width, 6.4 if style.titled else style.tallest * 1.2)
    figure, axes = _figure((width, 0.81 * width), f"{title}, round {logged[-1]['round']}", style)
    for label in np.unique(labels):
        look = line_of(int(label))
        mine = points[labels == label]
        axes.scatter(
            mine[:, 0], mine[:, 1], s=style.marker**2, alpha=0.35, color=look["color"], marker=look["marker"],
            linewidths=0, rasterized=len(points) > 2000,
        )  # fmt: skip
    for label in np.unique(labels):
        x, y = np.median(points[labels == label], axis=0)
        axes.text(
            x, y, names[label], size=style.font, weight="bold", ha="center", va="center",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
        )  # fmt: skip
    axes.set(xlabel="first principal component", ylabel="second")
    rows = [(*point, names[label]) for point, label in zip(points.tolist(), labels.tolist(), strict=True)]
    return Drawing(figure, ("first", "second", "class"), rows)


def _figure(size: tuple[float, float], title: str, style: Style) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    if style.titled:
        axes.set_title(title)
    return figure, axes


def _bar(figure: Figure, image: Any, axes: Axes, label: str = "") -> None:
    bar = figure.colorbar(image, ax=axes, label=label)
    bar.outline.set_visible(False)


def _label(axes: Axes, axis: str, names: Sequence[str], room: float, style: Style) -> None:
    """Write the names of rows or columns; as many as there is room for, in inches; long names of columns upright."""
    longest = max(map(len, names), default=0) * 0.65 * style.small / 72
    upright = axis == "x" and longest > 0.9 * room / max(len(names), 1)
    each = longest * 1.3 if axis == "x" and not upright else 1.2 * style.small / 72
    step = max(1, int(np.ceil(len(names) * each / room)))
    places = range(0, len(names), step)
    if axis == "x":
        axes.set_xticks(places, [names[i] for i in places], rotation=90 if upright else 0)
    else:
        axes.set_yticks(places, [names[i] for i in places])


def _shares(matrix: np.ndarray) -> list[list[str]]:
    return [[f"{value:.2f}" if value >= 0.005 else "" for value in row] for row in matrix.tolist()]


def _table(panel: str, rows: Sequence[Any], columns: Sequence[Any], matrix: np.ndarray) -> list[list[Any]]:
    return [[panel, rows[row], columns[column], value.item()] for (row, column), value in np.ndenumerate(matrix)]


def confusion(kept: dict[str, Any], model: str, style: Style) -> Drawing:
    """Draw the confusion matrix of a model of an evaluation.json. Shade: the share of the true class's samples."""
    classes, one = kept["classes"], kept["models"][model]
    counts = np.array(one["confusion"])
    shares = counts / np.maximum(counts.sum(1), 1)[:, None]
    width = min(style.width, style.tallest * 1.2)
    figure, axes = _figure((width, 0.8 * width), "", style)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    side = 0.8 * width - 5 * style.font / 72
    cells(
        axes, shares, [[str(count) if count else "" for count in row] for row in counts.tolist()], (side, side), style
    )
    for axis in ("x", "y"):
        _label(axes, axis, [on_one_line(name, 24) for name in classes], side, style)
    axes.set(xlabel="predicted class", ylabel="true class")
    _bar(figure, image, axes, "share of the true class")
    return Drawing(figure, _CELL, _table("samples of a true class (row) by their prediction", classes, classes, counts))


def calibration(kept: dict[str, Any], style: Style) -> Drawing:
    """Draw the accuracy of each bin of confidence, and the calibration error, of all models of an evaluation.json."""
    figure, axes = _figure((style.width, 0.75 * style.width), "", style)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6 * style.line)
    entries, table = [], []
    for number, (model, one) in enumerate(kept["models"].items()):
        bins = [one for one in one["calibration"] if one["samples"]]
        (line,) = axes.plot(
            [one["confidence"] for one in bins], [one["accuracy"] for one in bins], **line_of(number)
        )  # fmt: skip
        entries.append((f"{model}  ECE {one['ece']:.3f}", line))
        table += [(model, i, *entry.values()) for i, entry in enumerate(one["calibration"])]
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.25)
    legend(figure, entries, style)
    return Drawing(figure, ("model", "bin", "samples", "confidence", "accuracy"), table)

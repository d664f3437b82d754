"""Figures of a run: its curves, the label heat map of a partition, and the images and matrices of methods."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..config import Config
from ..core.environment import Environment
from ..core.log import drawable, undrawable
from ..data.federated_data import FederatedData
from ..data.samples import PIXEL_MAX
from ..errors import InputError, described, on_one_line
from ..files import write_output
from ..messages.metric_names import as_text, is_main, metric_range
from .run_folder import MOST_ROWS, RunFolder, make_folder, read_strip, rows_of_images
from .weight_matrices import last_matrix

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito: safe for colour blindness

_INK = "#333333"
# names of classes and strategies are shown as they are: a dollar sign does not begin a formula
_plain_text = matplotlib.rc_context({"text.parse_math": False})


@_plain_text
def draw_curves(lines: list[dict[str, Any]], title: str, path: Path) -> Path | None:
    """Draw the main metrics of a run over rounds, with a band of one deviation over nodes. Returns the path."""
    names = sorted({name for line in lines for name in line["metrics"] if is_main(name)})
    if not names:
        return None
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(names, _COLOURS * len(names), strict=False):
        rows = [line for line in lines if name in line["metrics"]]
        rounds = [line["round"] for line in rows]
        values = np.array([line["metrics"][name] for line in rows])
        axes.plot(rounds, values, color=colour, label=f"{name}  {as_text(name, values[-1])}", marker="o", markersize=3)
        if all(name in line["spread"] for line in rows):
            deviation = np.array([line["spread"][name]["std"] for line in rows])
            low, high = (np.clip(edge, *metric_range(name)) for edge in (values - deviation, values + deviation))
            axes.fill_between(rounds, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set(xlabel="round", ylabel=names[0].rpartition("/")[2].replace("_", " "), title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, title="at the end; band: one deviation over nodes", title_fontsize=8)
    return _save(figure, path)


@_plain_text
def draw_partition(data: FederatedData, title: str, path: Path) -> Path:
    """Draw the nodes x classes heat map of training samples. Shade: the share of the node's; bars: its size."""
    counts, held, noun = data.label_counts(), data.train_parts.lengths(), data.spec.noun(2)
    shares = counts / np.maximum(held, 1)[:, None]
    columns = {"classification": "class", "multilabel": "label", "regression": data.classes[0]}[data.spec.task]
    few = len(counts) <= 30 and len(data.counted) <= 20
    height = float(np.clip(0.26 * len(counts) + 1.4, 3.2, 10))
    figure = Figure(figsize=(float(np.clip(0.48 * len(data.counted) + 3.4, 6.4, 13)), height), layout="constrained")
    heat, sizes = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    image = heat.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if few:
        for (node, label), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[node, label] > 0.6 else _INK
                heat.text(label, node, str(count), ha="center", va="center", fontsize=7, color=colour)
    heat.set(xlabel=columns, ylabel="node", title=title)
    heat.set_xticks(range(len(data.counted)), data.counted, rotation=90 if max(map(len, data.counted)) > 2 else 0)
    if data.node_names and few:
        heat.set_yticks(range(len(counts)), [on_one_line(name, 24) for name in data.node_names])
    else:
        heat.yaxis.set_major_locator(MaxNLocator(integer=True))
    sizes.barh(range(len(counts)), held, color=_COLOURS[0], height=0.8)
    sizes.set(xlabel=noun)
    sizes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(image, ax=sizes, label=f"share of the node's {noun}")
    return _save(figure, path)


@_plain_text
def draw_weights(folder: RunFolder, title: str, path: Path) -> Path | None:
    """Draw the last N x N matrix of weights that a run has logged. Returns the path; None if there is no matrix."""
    logged = last_matrix(folder.lines(), folder.path)
    if logged is None:
        return None
    number, nodes, weights = logged
    figure = Figure(figsize=(6.2, 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(nodes) <= 16:
        axes.set_xticks(range(len(nodes)), nodes)
        axes.set_yticks(range(len(nodes)), nodes)
        for (receiver, sender), weight in np.ndenumerate(weights):
            if weight >= 0.005:
                colour = "white" if weight > 0.6 else _INK
                axes.text(sender, receiver, f"{weight:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set(xlabel="sender", ylabel="receiver", title=f"{title}, round {number}")
    figure.colorbar(image, ax=axes, label="weight")
    return _save(figure, path)


@_plain_text
def draw_ensemble(lines: list[dict[str, Any]], classes: tuple[str, ...], title: str, path: Path) -> Path | None:
    """Draw the label distribution p_t(y) over rounds, and the last weight of each teacher for each class. Returns the
    path; None if the run has logged no such weights.
    """
    logged = [line for line in lines if drawable(line["log"], "label_distribution")]
    weighed = [line for line in logged if drawable(line["log"], "ensemble_weights", "teachers")]
    if not weighed:
        return None
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rounds = [line["round"] for line in logged]
    shares = np.array([line["log"]["label_distribution"] for line in logged]).T
    most = max(float(shares.max()), 2 / len(classes))  # a uniform share is in the middle of the scale
    edges = (rounds[0] - 0.5, rounds[-1] + 0.5, len(classes) - 0.5, -0.5)
    image = left.imshow(shares, cmap="Blues", vmin=0, vmax=most, aspect="auto", interpolation="nearest", extent=edges)
    left.set(xlabel="round", ylabel="class", title="p_t(y): labels of the cohort")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=left)
    weights, nodes = np.array(weighed[-1]["log"]["ensemble_weights"]), weighed[-1]["log"]["teachers"]
    image = right.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    if weights.size <= 200:
        for (label, teacher), weight in np.ndenumerate(weights):
            if weight >= 0.005:
                colour = "white" if weight > 0.6 else _INK
                right.text(teacher, label, f"{weight:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    right.set_xticks(range(len(nodes)), nodes, rotation=90 if len(nodes) > 20 else 0)
    right.set(xlabel="node", title=f"weight of each teacher, round {weighed[-1]['round']}")
    figure.colorbar(image, ax=right)
    for axes in (left, right):
        if len(classes) <= 20:
            axes.set_yticks(range(len(classes)), classes)
    figure.suptitle(title, fontsize=11)
    return _save(figure, path)


@_plain_text
def draw_features(lines: list[dict[str, Any]], classes: tuple[str, ...], title: str, path: Path) -> Path | None:
    """Draw the last two-dimensional feature map that a run has logged, one colour per class; None if there is none."""
    logged = [line for line in lines if drawable(line["log"], "feature_map")]
    if not logged:
        return None
    points = np.array(logged[-1]["log"]["feature_map"]["points"])
    labels = np.array(logged[-1]["log"]["feature_map"]["labels"])
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "hsv"]
    for label in np.unique(labels):
        colour = colours(label if len(classes) <= 10 else label / len(classes))
        mine = points[labels == label]
        axes.scatter(mine[:, 0], mine[:, 1], s=9, alpha=0.45, color=colour, linewidths=0)
        x, y = np.median(mine, axis=0)
        axes.text(x, y, classes[label], color=colour, fontsize=11, weight="bold", ha="center")
    axes.set(xlabel="first principal component", ylabel="second", title=f"{title}, round {logged[-1]['round']}")
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


@_plain_text
def draw_virtual(
    images: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    title: str,
    path: Path,
    rows: int = 10,
    *,
    wide: bool = False,
) -> Path:
    """Draw virtual images (uint8, N x C x H x W), one column per class, at most `rows` of each. Returns the path.

    `wide`: pictures of other samples, with texts or lines; a third as many rows.
    """
    held = np.unique(labels)
    tiles = [images[labels == label][:rows] for label in held]
    if wide:
        tiles = [tile[: rows // 3] for tile in tiles]
    deep = max(len(tile) for tile in tiles)
    across, down = (1.85, 1.5) if wide else (0.62, 0.62)
    figure = Figure(figsize=(max(across * len(held) + 0.3, 3.5), down * deep + 0.7), layout="constrained")
    grid = figure.subplots(deep, len(held), squeeze=False)
    for column, (label, tile) in enumerate(zip(held, tiles, strict=True)):
        for row in range(deep):
            axes = grid[row][column]
            axes.axis("off")
            if row < len(tile):
                shown = tile[row].transpose(1, 2, 0)
                axes.imshow(shown if len(tile[row]) == 3 else shown[:, :, 0], cmap="gray", vmin=0, vmax=PIXEL_MAX)
        grid[0][column].set_title(classes[label], fontsize=8)
    figure.suptitle(title, fontsize=9.5)
    return _save(figure, path)


@_plain_text
def draw_images(folder: Path, title: str, rows: int = 8, unit: str = "round") -> Path | None:
    """Draw the rows of images in a run's folder, one row for each round, at most `rows`, with the first and the last.
    Returns the path of the figure next to the folder; None for an empty folder.
    """
    files = rows_of_images(folder)
    if not files:
        return None
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, min(rows, len(files))).round().astype(int))]
    strips = [(file, read_strip(file, folder.parent)) for file in chosen]
    columns = max(len(strip.captions) for _, strip in strips)
    size = (0.75 * columns + 1.2, 0.75 * len(strips) + 1.0)
    figure = Figure(figsize=(max(size[0], 4.5), max(size[1], 1.9)), layout="constrained")
    grid = figure.subplots(len(strips), columns, squeeze=False)
    for row, (file, strip) in enumerate(strips):
        captions, tiles = strip.captions, np.split(strip.pixels, len(strip.captions), axis=1)
        for column, axes in enumerate(grid[row]):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if column < len(captions):
                if row == 0:
                    axes.set_title(captions[column], fontsize=8)
                axes.imshow(tiles[column], cmap="gray", vmin=0, vmax=PIXEL_MAX, interpolation="nearest")
        name = f"{unit} {int(file.stem.removeprefix('round-'))}"
        grid[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=9.5)
    return _save(figure, folder.with_suffix(".png"))


def check_picture(option: str, path: Path) -> None:
    """Raise InputError, which names the option, if no picture can be written to a path: a folder, an unknown ending."""
    valid = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in valid:
        raise InputError(f"{option} {path}: a picture needs one of the endings .{', .'.join(valid)}.")
    if path.is_dir():
        raise InputError(f"{option} {path}: this is a folder; name a file, such as partition.png.")
    make_folder(path.parent, option)


def _save(figure: Figure, path: Path) -> Path:
    ending, content = path.suffix.lower().removeprefix("."), io.BytesIO()
    with matplotlib.rc_context({"savefig.dpi": 144}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in scripts that the font lacks
        figure.savefig(content, format=ending, metadata={"Software": None} if ending == "png" else None)
    write_output(path, content.getvalue())
    return path


def draw(environment: Environment, folder: RunFolder) -> list[str]:
    """Draw the figures of a run; return a text on each that cannot be drawn."""
    config, data = environment.config, environment.data
    sets = config.data.set_names
    named = ", ".join(sets) if len(sets) < 3 else f"{sets[0]} and {len(sets) - 1} sets more"  # titles are short
    about = f"{config.strategy.name} on {named}, seed {config.seed}"
    home, lines = folder.figures, folder.lines()
    problems = [f"{text}." for text in dict.fromkeys(text for line in lines for text in undrawable(line["log"]))][:3]
    work: dict[str, Callable[[Path], Path | None]] = {
        "curves": lambda path: draw_curves(lines, about, path),
        "weights": lambda path: draw_weights(folder, about, path),
        "ensemble": lambda path: draw_ensemble(lines, data.classes, about, path),
        "features": lambda path: draw_features(lines, data.classes, about, path),
    }
    if config.data.partition is not None and data.clients <= MOST_ROWS:  # with real sites, the partition is not known
        title = f"{partition_name(config)}, seed {config.seed}"
        work["partition"] = lambda path: draw_partition(data, title, path)
    for images in folder.image_folders():
        work[images.name] = lambda path: draw_images(path.with_suffix(""), f"{path.stem}: {about}")
    for name, draw_one in work.items():
        try:
            draw_one(home / f"{name}.png")
        except Exception as error:  # no figure may cost a finished run
            problems.append(f"The figure {name} cannot be drawn: {described(error)}.")
    return problems


def partition_name(config: Config) -> str:
    """Return the partition as text, such as `dirichlet (clients 20, alpha 0.1)`."""
    partition = config.data.partition
    assert partition is not None, "a run has one"
    return _in_words({"scheme": partition.scheme, **(partition.model_extra or {})})


def _in_words(table: dict[str, Any]) -> str:
    parts = [
        f"{key} {_in_words(value) if isinstance(value, dict) else value}"
        for key, value in table.items()
        if key != "scheme"
    ]
    return " ".join([str(table["scheme"]), *([f"({', '.join(parts)})"] if parts else [])])

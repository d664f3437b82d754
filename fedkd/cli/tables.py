"""Tables for a terminal."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..data.federated_data import FederatedData
    from ..runs.search import Trial


_MOST_SHOWN = 20  # classes of a confusion matrix


def print_partition(data: FederatedData) -> None:
    """Print which node has which samples: one row for each node."""
    from rich.table import Table

    counts, held, noun = data.label_counts(), data.train_parts.lengths(), data.spec.noun(2)
    table = Table(title=f"{data.clients} nodes, {int(held.sum())} training {noun}", title_justify="left")
    whose = ("holder",) if data.node_names else ()
    for name in ("node", *whose, "domain", "train", "test", *data.counted[:20]):
        table.add_column(name, justify="right")
    if len(data.counted) > 20:
        table.add_column(f"... {len(data.counted)} classes")
    for node in range(data.clients):
        domain = data.domain_names[data.node_domains[node]]
        holder = data.node_names[node : node + 1]
        cells = [str(node), *holder, domain, int(held[node]), len(data.test_parts[node]), *counts[node, :20]]
        table.add_row(*(str(cell) if isinstance(cell, str) or cell else "·" for cell in cells))
    # a table in a file is as wide as it needs to be
    _console(None if sys.stdout.isatty() else 40 + 8 * min(len(data.counted), 20) + 20).print(table)
    public = "none" if data.public is None else f"{len(data.public.labels)} {noun}"
    typer.echo(f"global test: {len(data.test.labels)} {noun}; public set: {public}")


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print a run's last and best metrics, its traffic, and the paths of its files."""
    from rich.table import Table

    title = f"{summary['strategy']}, {summary['rounds']} rounds, seed {summary['seed']}"
    table = Table(title=title, title_justify="left")
    for name in ("metric", "final", "best"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, value in summary["final"].items():
        table.add_row(name, *(_number(name, one) for one in (value, summary["best"][name])))
    console = _console()
    console.print(table)
    for way in ("up", "down"):
        kinds = ", ".join(f"{kind} {_human(size)}" for kind, size in summary["bytes"][way].items()) or "nothing"
        console.print(f"sent {way}: {kinds}")
    console.print(f"{summary['seconds']['total']:.1f} s, {summary['failures']} failures")
    figures = sorted(str(path) for path in (folder / "figures").glob("*.png"))
    console.print("figures: " + " ".join(figures), soft_wrap=True)
    console.print(f"run folder: {folder}", soft_wrap=True)


def _number(metric: str, value: float) -> str:
    """Return a value with four digits after the point; errors of targets, of any size, with six significant ones."""
    return f"{value:.6g}" if metric.endswith(("/mse", "/mae")) else f"{value:.4f}"


def print_comparison(header: list[str], rows: list[list[str]], caption: str) -> None:
    """Print a table; on a narrow terminal in several parts, each with the strategies' names."""
    from rich.table import Table
    from rich.text import Text

    widths = [max(map(len, column)) + 3 for column in zip(header, *rows, strict=True)]
    # a table in a file is as wide as it needs to be
    console = _console(None if sys.stdout.isatty() else max(sum(widths) + 1, 120))
    parts: list[list[int]] = [[]]
    for number in range(1, len(header)):
        if parts[-1] and widths[0] + sum(widths[i] for i in parts[-1]) + widths[number] + 1 > console.width:
            parts.append([])
        parts[-1].append(number)
    console.print(Text(caption))
    for part in parts:
        table = Table()
        for number in (0, *part):
            table.add_column(header[number], justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(row[number]) for number in (0, *part)))
        console.print(table)


def _console(width: int | None = None) -> Console:
    """Return a console that shows names from outside as they are: brackets are no markup, colons no emoji."""
    from rich.console import Console

    return Console(width=width, markup=False, emoji=False, highlight=False)


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def print_trials(trials: list[Trial], metric: str, most: int = 10) -> None:
    """Print the trials of a search, the best ones first."""
    from rich.table import Table

    from ..runs.metrics import lower_is_better

    sign = -1.0 if lower_is_better(metric) else 1.0
    ordered = sorted(trials, key=lambda one: -math.inf if one.value is None else sign * one.value, reverse=True)
    table = Table("trial", *trials[0].values, metric, title=f"the best of {len(trials)} trials", title_justify="left")
    for one in ordered[:most]:
        shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in one.values.values())
        table.add_row(str(one.number), *shown, one.state if one.value is None else _number(metric, one.value))
    _console().print(table)


def print_scores(found: dict[str, Any]) -> None:
    """Print the scores of a model: of all samples, of each class and node, and of few classes the confusion matrix."""
    from rich.table import Table

    console, whole = _console(), found["scores"]
    table = Table(title=f"{whole['samples']} samples of {found['data']}", title_justify="left", show_header=False)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece", "mse", "mae", "r2", "loss"):
        if name in whole:
            table.add_row(name.replace("_", " "), _score(whole[name]))
    console.print(table)
    if "classes" in whole:
        table = Table("class", "samples", "precision", "recall", "F1", "AUC")
        for name, one in zip(found["classes"], whole["classes"], strict=True):
            table.add_row(
                name, str(one["samples"]), *(_score(one[key]) for key in ("precision", "recall", "f1", "auc"))
            )
        console.print(table)
        if len(found["classes"]) <= _MOST_SHOWN:
            table = Table(*found["classes"], title="rows: true classes; columns: predicted", title_justify="left")
            for row in whole["confusion"]:
                table.add_row(*map(str, row))
            console.print(table)
    if found["nodes"]:
        names = [name for name in next(iter(found["nodes"].values())) if name != "samples"]
        table = Table("node", "samples", *(name.replace("_", " ") for name in names))
        for node, one in found["nodes"].items():
            table.add_row(node, str(one["samples"]), *(_score(one.get(name)) for name in names))
        console.print(table)


def _score(value: float | None) -> str:
    return "·" if value is None else f"{value:.4f}"

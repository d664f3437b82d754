"""Comparisons as tables: for a terminal, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from ..errors import InputError, on_one_line
from ..files import as_csv
from ..messages.metric_names import is_fraction
from ..runs.metrics import lower_is_better
from .compare import Comparison, Reached
from .estimates import DRAWS, LEAST_SEEDS, Estimate

TARGET = ("reached", "rounds to it", "MB to it", "s to it")
_PRIMARY = ("final", "95 % interval", "best", "difference", "gains", "p", "worst decile", "over nodes", *TARGET)
COLUMNS = ("seeds", *(name for name in _PRIMARY if name not in TARGET), *TARGET, "MB", "s", "failures")
Mark = Literal["", "best", "second"]


class Cell(NamedTuple):
    """The text of a cell, and the number in it by which rows are ranked: larger is better, NaN is no number."""

    text: str
    rank: float = math.nan


def check_columns(columns: Sequence[str], metrics: Iterable[str], *, target: bool) -> list[str]:
    """Return the metrics among the columns. Raises InputError for a column that is neither `COLUMNS` nor a metric.

    `target`: whether the comparison has one; without, there are no columns of it.
    """
    known = [name for name in COLUMNS if target or name not in TARGET]
    valid = [*known, *sorted(metrics)]
    for name in columns:
        if name not in valid:
            hint = " It needs --target." if name in TARGET else ""
            raise InputError(f"--columns: unknown {on_one_line(name, 100)!r}.{hint} Valid: {', '.join(valid)}.")
    return [name for name in columns if name not in known]


def table(comparison: Comparison, columns: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a comparison as text; accuracies in percent, gains in points.

    `columns`: of `COLUMNS` and of the metrics beside, in their order; by default all.
    """
    cells = _cells(comparison, columns)
    return [_head(name) for name in cells], [[cell.text for cell in row] for row in zip(*cells.values(), strict=True)]


def marks(comparison: Comparison, columns: Sequence[str] = ()) -> list[list[Mark]]:
    """Return for each cell of `table` whether it is the best of its column, or the second, by the printed numbers.

    Rows with equal printed numbers are equal. A best needs two rows with numbers, a second three.
    """
    marked: list[list[Mark]] = []
    for column in _cells(comparison, columns).values():
        ranked = [cell.rank for cell in column if not math.isnan(cell.rank)]
        places: tuple[Mark, ...] = ("best", "second")
        names = dict(zip(sorted(set(ranked), reverse=True), places[: len(ranked) - 1], strict=False))
        marked.append([names.get(cell.rank, "") for cell in column])
    return [list(row) for row in zip(*marked, strict=True)]


def _head(column: str) -> str:
    return f"{column} (%)" if is_fraction(column) else column


def _cells(comparison: Comparison, columns: Sequence[str]) -> dict[str, list[Cell]]:
    """Return the columns of a table: the names of the strategies, then the chosen ones."""
    rows, metric = comparison.rows, comparison.metric

    def of_metric(name: str, values: Iterable[Estimate]) -> list[Cell]:
        return [Cell(_of_seeds(name, value), _rank(name, value.mean)) for value in values]

    pairs = [row.paired for row in rows]
    ps = [pair.p if pair else None for pair in pairs]
    found = {
        "strategy": [Cell(row.arm.name) for row in rows],
        "seeds": [Cell(str(row.final.seeds or len(row.arm.runs))) for row in rows],
        "final": of_metric(metric, (row.final for row in rows)),
        "95 % interval": [Cell(_interval(metric, row.final)) for row in rows],
        "best": of_metric(metric, (row.best for row in rows)),
        "difference": [Cell(_of_seeds(metric, pair.difference, "+") if pair else "–") for pair in pairs],
        "gains": [Cell(f"{pair.wins} of {pair.difference.seeds}" if pair else "–") for pair in pairs],
        "p": [Cell("–" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001") for p in ps],
        "worst decile": [Cell(_number(metric, row.worst_decile), _rank(metric, row.worst_decile)) for row in rows],
        "over nodes": [Cell(_number(metric, row.spread)) for row in rows],
    }
    if comparison.target is not None:
        there = [row.reached or Reached(math.nan, math.nan, math.nan, 0) for row in rows]
        texts = [
            [f"{one.runs} of {row.final.seeds}", *map(_short, one[:3])] for one, row in zip(there, rows, strict=True)
        ]
        found |= {name: [Cell(row[i]) for row in texts] for i, name in enumerate(TARGET)}
    found |= {name: of_metric(name, (row.beside[name] for row in rows)) for name in comparison.beside}
    found |= {
        "MB": [Cell(_short(row.megabytes)) for row in rows],
        "s": [Cell(_short(row.seconds)) for row in rows],
        "failures": [Cell(str(row.failures)) for row in rows],
    }
    return {name: found[name] for name in ("strategy", *columns)} if columns else found


def _scaled(metric: str) -> tuple[float, int]:
    return (100.0, 1) if is_fraction(metric) else (1.0, 4)


def _number(metric: str, value: float | None, sign: str = "") -> str:
    scale, digits = _scaled(metric)
    return "–" if value is None or math.isnan(value) else f"{scale * value:{sign}.{digits}f}"


def _of_seeds(metric: str, value: Estimate, sign: str = "") -> str:
    """Return mean and deviation, or the values of few seeds. `sign`: + for differences."""
    if value.seeds < LEAST_SEEDS:
        return ", ".join(_number(metric, one, sign) for one in value.values) or "–"
    deviation = "" if math.isnan(value.deviation) else f" ± {_number(metric, value.deviation)}"
    return _number(metric, value.mean, sign) + deviation


def _interval(metric: str, value: Estimate) -> str:
    return "–" if math.isnan(value.low) else f"{_number(metric, value.low)} to {_number(metric, value.high)}"


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _rank(metric: str, value: float | None) -> float:
    """Return a value as it is printed, larger for better ones."""
    if value is None or not math.isfinite(value):
        return math.nan
    scale, digits = _scaled(metric)
    return round(scale * value, digits) * (-1 if lower_is_better(metric) else 1)


def caption(comparison: Comparison, columns: Sequence[str] = (), *, marked: bool = False) -> str:
    """Return the caption of a table: metric, statistics, number of seeds, baseline and target, by what it shows.

    `marked`: whether the best and the second are marked.
    """
    shown = set(columns or _cells(comparison, ()))
    about = [comparison.metric] if shown & set(_PRIMARY) else []
    unit = " in percent" if about and is_fraction(comparison.metric) else ""
    beside = [name for name in comparison.beside if name in shown]
    about[:1] = [f"{about[0]}{unit}"] if about else []
    about += [f"the last {', '.join(beside)}"] if beside else []
    seeds = sorted({row.final.seeds or len(row.arm.runs) for row in comparison.rows})
    several = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    head = f"{', and '.join(about)}, mean ± standard deviation" if about else "Means"
    title = f"{comparison.title}: " if comparison.title else ""
    parts = [f"{title}{head} over seeds (n = {several}); with fewer than three seeds, their values."]
    if "95 % interval" in shown and comparison.interval == "bootstrap":
        parts.append(f"The interval is that of {DRAWS} bootstrap draws of the seeds.")
    if shown & {"difference", "gains"}:
        parts.append(f"Differences to {comparison.baseline} are on matched seeds.")
    if "p" in shown:
        parts.append(
            f"p: Student's paired test against {comparison.baseline}, adjusted for the number of strategies (Holm)."
        )
    if shown & {"worst decile", "over nodes"}:
        parts.append("Worst decile and deviation are over nodes, at the last measurement.")
    if comparison.target is not None and shown & set(TARGET):
        parts.append(f"Target: {comparison.target:g}; means over the runs that reached it.")
    if marked and any(map(any, marks(comparison, columns))):
        parts.append("Bold: the best of a column; underlined: the second.")
    return " ".join(parts)


def to_markdown(comparisons: Sequence[Comparison], columns: Sequence[str] = ()) -> str:
    """Return the comparisons as Markdown tables under their captions; the best is bold, the second underlined."""
    texts = []
    for one in comparisons:
        header, rows = table(one, columns)
        lines = [
            [_MARKDOWN[mark].format(_markdown(cell)) for cell, mark in zip(row, marked, strict=True)]
            for row, marked in zip(rows, marks(one, columns), strict=True)
        ]
        rule = ["---"] + ["---:"] * (len(header) - 1)
        head = [_markdown(cell) for cell in header]
        about = _markdown(caption(one, columns, marked=True))
        texts.append("\n".join([about, "", *("| " + " | ".join(row) + " |" for row in [head, rule, *lines])]))
    return "\n\n".join(texts) + "\n"


def _markdown(text: str) -> str:
    """Return text that Markdown shows as it is. An underscore within a word and a lone sign are no markup."""
    text = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", on_one_line(text, 2000))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;&#47;")


def to_latex(comparisons: Sequence[Comparison], columns: Sequence[str] = ()) -> str:
    """Return the comparisons as LaTeX tables for the package booktabs; the best is bold, the second underlined."""
    texts = []
    for one in comparisons:
        header, rows = table(one, columns)
        lines = [
            " & ".join(_LATEX_MARKS[mark] % _latex(cell) for cell, mark in zip(row, marked, strict=True))
            for row, marked in zip(rows, marks(one, columns), strict=True)
        ]
        texts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_latex(caption(one, columns, marked=True))}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                    r"\toprule",
                    "  " + " & ".join(_latex(cell) for cell in header) + r" \\",
                    r"\midrule",
                    *(f"  {line} " + r"\\" for line in lines),
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(texts) + "\n"


_MARKDOWN: dict[Mark, str] = {"": "{}", "best": "**{}**", "second": "<ins>{}</ins>"}
_LATEX_MARKS: dict[Mark, str] = {"": "%s", "best": r"\textbf{%s}", "second": r"\underline{%s}"}
_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$",
     ">": "$>$", "[": "{[}", "*": "{*}"}
)  # fmt: skip


def _latex(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", on_one_line(text, 2000)).translate(_LATEX)


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as CSV, one line per arm, numbers in full precision; missing values are empty."""
    lines: list[dict[str, Any]] = []
    for one in comparisons:
        for row in one.rows:
            line: dict[str, Any] = {"group": one.title, "strategy": row.arm.name, "metric": one.metric}
            line["seeds"] = " ".join(str(run.seed) for run in row.arm.runs)
            for name, value in (("final", row.final), ("best", row.best)):
                line |= {f"{name}_{field}": getattr(value, field) for field in ("mean", "deviation", "low", "high")}
                line[f"{name}_values"] = " ".join(str(one) if math.isfinite(one) else "-" for one in value.values)
            pair = row.paired
            difference = pair.difference if pair else None
            for field in ("mean", "deviation", "low", "high", "seeds"):
                line[f"difference_{field}"] = getattr(difference, field, None)
            line |= {"gains": pair.wins if pair else None, "p": pair.p if pair else None}
            line |= {"worst_decile": row.worst_decile, "deviation_over_nodes": row.spread, "target": one.target}
            for field in ("runs", "rounds", "megabytes", "seconds"):
                line[f"target_{field}"] = getattr(row.reached, field, None)
            line |= {"megabytes": row.megabytes, "seconds": row.seconds, "failures": row.failures}
            for name, value in row.beside.items():
                line |= {f"{name}_{field}": getattr(value, field) for field in ("mean", "deviation", "low", "high")}
            lines.append(line)
    header = list(dict.fromkeys(name for line in lines for name in line))
    return as_csv(header, [[line.get(name) for name in header] for line in lines])

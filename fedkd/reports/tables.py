"""Comparisons as tables: for a terminal, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from ..errors import on_one_line
from ..messages.metric_names import is_fraction
from ..runs.metrics import lower_is_better
from .compare import LEAST_SEEDS, Comparison, Estimate

# Tables


def table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a comparison as text; accuracies in percent, gains in points."""
    fraction = is_fraction(comparison.metric)
    scale, digits = (100.0, 1) if fraction else (1.0, 4)

    def number(value: float | None, sign: str = "") -> str:
        return "–" if value is None or math.isnan(value) else f"{scale * value:{sign}.{digits}f}"

    def of_seeds(value: Estimate, sign: str = "") -> str:
        """Return mean and deviation, or the values of few seeds. `sign`: + for differences."""
        if value.seeds < LEAST_SEEDS:
            return ", ".join(number(one, sign) for one in value.values)
        return number(value.mean, sign) + ("" if math.isnan(value.deviation) else f" ± {number(value.deviation)}")

    def interval(value: Estimate) -> str:
        return "–" if math.isnan(value.low) else f"{number(value.low)} to {number(value.high)}"

    header = ["strategy", "seeds", "final", "95 % interval", "best", "difference", "gains", "p", "worst decile",
              "over nodes"]  # fmt: skip
    if comparison.target is not None:
        header += ["reached", "rounds to it", "MB to it", "s to it"]
    header += ["MB", "s", "failures"]
    rows = []
    for row in comparison.rows:
        cells = [row.arm.name, str(row.final.seeds), of_seeds(row.final), interval(row.final),
                 of_seeds(row.best)]  # fmt: skip
        if row.paired is None:
            cells += ["–", "–", "–"]
        else:
            cells += [
                of_seeds(row.paired.difference, "+"),
                f"{row.paired.wins} of {row.paired.difference.seeds}",
                "–" if row.paired.p is None else f"{row.paired.p:.3f}" if row.paired.p >= 0.001 else "< 0.001",
            ]
        cells += [number(row.worst_decile), number(row.spread)]
        if row.reached is not None:
            cells.append(f"{row.reached.runs} of {row.final.seeds}")
            cells += ["–" if math.isnan(value) else f"{value:.4g}" for value in row.reached[:3]]
        cells += [f"{row.megabytes:.4g}", f"{row.seconds:.4g}", str(row.failures)]
        rows.append(cells)
    return header, rows


def caption(comparison: Comparison) -> str:
    """Return the caption of a table: metric, statistics, baseline and target."""
    unit = " in percent" if is_fraction(comparison.metric) else ""
    base = next((row for row in comparison.rows if row.paired is None), comparison.rows[0])
    target = (
        "" if comparison.target is None else f" Target: {comparison.target:g}; means over the runs that reached it."
    )
    return (
        f"{comparison.title + ': ' if comparison.title else ''}{comparison.metric}{unit}, mean ± standard deviation "
        f"over seeds; with fewer than three seeds, their values. Differences to {base.arm.name} are on matched seeds; "
        "p: Student's paired test, adjusted for the number of strategies (Holm). Worst decile and deviation are over "
        f"nodes, at the last measurement.{target}"
    )


def to_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as Markdown tables under their captions."""
    texts = []
    for one in comparisons:
        header, rows = table(one)
        rows = [[_markdown(cell) for cell in row] for row in rows]
        rule = ["---"] + ["---:"] * (len(header) - 1)
        texts.append(
            "\n".join([_markdown(caption(one)), "", *("| " + " | ".join(row) + " |" for row in [header, rule, *rows])])
        )
    return "\n\n".join(texts) + "\n"


def _markdown(text: str) -> str:
    """Return text that Markdown shows as it is. An underscore within a word and a lone sign are no markup."""
    text = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", on_one_line(text, 2000))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;&#47;")


def to_latex(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as LaTeX tables for the package booktabs; the best mean of each is bold."""
    texts = []
    for one in comparisons:
        header, rows = table(one)
        means = [row.final.mean for row in one.rows]
        finite = [mean for mean in means if math.isfinite(mean)]
        best = (min if lower_is_better(one.metric) else max)(finite, default=None)
        lines = []
        for row, mean in zip(rows, means, strict=True):
            cells = [_latex(cell) for cell in row]
            if mean == best:
                cells[2] = f"\\textbf{{{cells[2]}}}"
            lines.append("  " + " & ".join(cells) + r" \\")
        texts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_latex(caption(one))}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                    r"\toprule",
                    "  " + " & ".join(_latex(cell) for cell in header) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(texts) + "\n"


_LATEX = str.maketrans(
    {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$",
     ">": "$>$", "[": "{[}", "*": "{*}"}
)  # fmt: skip


def _latex(text: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "−", on_one_line(text, 2000)).translate(_LATEX)


def _no_formula(name: str) -> str:
    """Return a name that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(tuple("=+-@＝＋－＠")) else name


def to_csv(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as CSV, one line per arm, numbers in full precision; missing values are empty."""
    lines: list[dict[str, Any]] = []
    for one in comparisons:
        for row in one.rows:
            names = {"group": one.title, "strategy": row.arm.name, "metric": one.metric}
            line: dict[str, Any] = {key: _no_formula(name) for key, name in names.items()}
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
            lines.append({key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in line.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()

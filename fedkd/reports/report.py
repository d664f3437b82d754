"""The report: one HTML page on runs, which needs no network: curves, tables, partitions, nodes, methods' figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import numpy as np
import tomli_w

from ..core.log import drawable
from ..errors import InputError, printable, reason_of
from ..files import leads_out, write_output
from ..masking import masked
from ..messages.metric_names import is_fraction
from ..runs.metrics import lower_is_better
from ..runs.results import Arm, Run, arms_of, changes_between, completed, differing, find_runs, in_order, shown
from ..runs.run_folder import make_folder, read_strip, rows_of_images
from ..runs.weight_matrices import last_matrix
from . import charts
from .compare import Row, compare
from .estimates import LEAST_SEEDS
from .evaluations import evaluations, traffic
from .selection import arms_named, arranged, check_known, names_in, of_group
from .series import nodes_of, series_of
from .tables import caption, table

_MOST_IMAGES = 8  # the largest number of rounds in a series of images
_MOST_ROWS = 100  # the largest number of rows of a heat map with its own table


def report(
    paths: Sequence[Path],
    out: Path,
    title: str | None = None,
    *,
    baseline: str | None = None,
    names: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> list[str]:
    """Write the page on all runs in folders; return a line about each run that is left out.

    `baseline`, `names` (texts `strategy=Name`) and `rows` are those of `compare`; a group of runs may lack some. Raises
    InputError if no run can be shown, for an output that is a folder, and for a name or row that no run has.
    """
    if out.is_dir():
        raise InputError(f"--output {out}: this is a folder; name a file, such as report.html.")
    runs, problems = find_runs(paths)
    groups = [arms_of(group)[0] for group in _alike(runs).values()]
    shown_as = names_in(names, groups)
    check_known(groups, shown_as, rows if baseline is None else [*rows, baseline])
    page, problems = render(
        runs, problems, title or f"fedkd: {', '.join(path.resolve().name for path in paths)}",
        baseline=baseline, names=shown_as, rows=rows,
    )  # fmt: skip
    make_folder(out.parent, "--output")
    write_output(out, page.encode())
    return problems


def render(
    runs: Sequence[Run],
    problems: Sequence[str],
    title: str,
    *,
    live: str = "",
    version: str = "",
    baseline: str | None = None,
    names: Mapping[str, str] | None = None,
    rows: Sequence[str] = (),
) -> tuple[str, list[str]]:
    """Return the page, and lines about what is left out or wrong.

    Incomplete runs are left out and reported; if there are no others, they are shown.
    `live`: the progress of a current run; the page then checks `version` for changes and updates itself.
    """
    problems, groups = list(problems), []
    for number, (name, members) in enumerate(_alike(runs).items()):
        whole, others = completed(members)
        problems += others if whole else [line.replace("left out", "shown as far as it is") for line in others]
        arms, twice = arms_of(whole or members)
        problems += twice
        problems += [f"{change}; do not compare them." for change in changes_between(whole)]
        names_here, rows_here = of_group(arms, names or {}, rows)
        if rows and not rows_here:
            problems.append(f"{name}: none of the --rows is here; left out.")
            continue
        group, more = _group(f"group-{number}", name, arms, baseline, names_here, rows_here)
        groups.append(group)
        problems += more
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_plain).from_string(
        files("fedkd.reports").joinpath("page.html").read_text(encoding="utf-8")
    )
    strategies = sorted({run.strategy for run in runs})
    seeds = sorted({run.seed for run in runs})
    versions = sorted({str(run.summary["versions"].get("fedkd")) for run in runs if run.summary})
    problems = list(dict.fromkeys(problems))
    page = template.render(
        title=title,
        about=f"{len(runs)} runs: {len(strategies)} strategies, seeds {', '.join(map(str, seeds))}."
        + (f" fedkd {', '.join(versions)}." if versions else ""),
        problems=problems,
        groups=groups,
        differing={key: [shown(value) for value in values] for key, values in differing(runs).items()},
        options=_options(runs),
        configs=[
            {"title": str(run.path), "text": tomli_w.dumps(masked(run.config))}
            for run in {run.arm: run for run in reversed(runs)}.values()
        ][::-1],
        live=live,
        version=version,
    )
    return page, problems


def _alike(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Sort runs into groups whose runs differ only in their strategies, by a title that distinguishes the groups."""
    keys = list(differing(runs))
    groups: dict[str, list[Run]] = {}
    for run in runs:
        text = [f"{key} = {run.settings[key]}" if key in run.settings else f"{key} unset" for key in keys]
        groups.setdefault(", ".join(text) or "Results", []).append(run)
    return groups


def _group(
    key: str, title: str, every: list[Arm], baseline: str | None, shown_as: Mapping[str, str], rows: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    pairs = arranged(every, shown_as, rows)
    arms = [arm for _, arm in pairs]
    names = in_order({name for arm in arms for run in arm.runs for name in run.metrics()})
    images, problems = _images(arms)
    parts = [
        _partition(arms), traffic(arms), *evaluations(arms), _weights(arms), _ensembles(arms), _features(arms),
        images,
    ]  # fmt: skip
    metrics = []
    for name in names:
        metric, more = _metric(name, pairs, every, arms_named(every, baseline, shown_as) if baseline else [])
        metrics.append(metric)
        problems += [problem for problem in more if not problem.endswith(f"has no {name}; left out.")]
    legend = [(arm.name, _safe(charts.legend(number))) for number, arm in enumerate(arms)]
    group = {
        "key": key,
        "title": title,
        "legend": legend,
        "metrics": metrics,
        "parts": [part for part in parts if part],
    }
    return group, problems


def _metric(
    metric: str, pairs: list[tuple[Arm, Arm]], every: list[Arm], baseline: list[Arm]
) -> tuple[dict[str, Any], list[str]]:
    numbers = {arm.name: number for number, (_, arm) in enumerate(pairs)}
    shown = [(one, arm) for one, arm in pairs if any(metric in run.metrics() for run in arm.runs)]
    having = [arm for _, arm in shown]
    base = [one for one in baseline if any(metric in run.metrics() for run in one.runs)]
    comparison = compare(
        [run for one in every for run in one.runs], metric=metric, rows=[one.name for one, _ in shown],
        baseline=base[0].name if len(base) == 1 else None, names={one.name: arm.name for one, arm in shown},
    )  # fmt: skip
    header, rows = table(comparison)
    scale = 100.0 if is_fraction(metric) else 1.0
    unit = f"{metric} (%)" if scale > 1 else metric
    figures = []
    for what, label in (
        ("rounds", "round"),
        ("megabytes", "megabytes sent, both directions"),
        ("seconds", "seconds of rounds"),
    ):
        series = [series_of(arm, metric, what, numbers[arm.name]) for arm in having]
        text = "; ".join(f"{row.arm.name} ends at {scale * row.final.mean:.4g}" for row in comparison.rows)
        seeds = max(len(arm.runs) for arm in having)
        band = "; the bands are one standard deviation over seeds" if seeds >= LEAST_SEEDS else ""
        figures.append(
            {
                "svg": _safe(
                    charts.curves(
                        series, label, unit, f"{metric} against {what}", f"Curves of {len(series)} strategies: {text}.",
                        whole=what == "rounds",
                    )
                ),
                "caption": f"{metric} against {what}{band}.",
            }
        )  # fmt: skip
    nodes = _nodes(metric, comparison.rows, numbers, scale, unit)
    numbered = [(numbers[row.arm.name], cells) for row, cells in zip(comparison.rows, rows, strict=True)]
    about = {"name": metric, "caption": caption(comparison), "header": header, "rows": numbered}
    return {**about, "figures": figures + ([nodes] if nodes else [])}, comparison.problems


def _nodes(metric: str, rows: list[Row], numbers: dict[str, int], scale: float, unit: str) -> dict[str, Any] | None:
    """Return the chart of each node's value for each seed, best mean first. Node 3 of another seed is another node."""
    dots = []
    for row in rows:
        values = [scale * value for _, _, value in nodes_of(row.arm, metric)]
        if values:
            dots.append((numbers[row.arm.name], row.arm.name, values))
    if not dots:
        return None
    dots.sort(key=lambda row: fmean(row[2]), reverse=not lower_is_better(metric))
    text = "; ".join(f"{name}: {min(v):.4g} to {max(v):.4g}, mean {fmean(v):.4g}" for _, name, v in dots)
    return {
        "svg": _safe(charts.strips(dots, unit, f"{metric} of each node", f"A dot for each node and seed. {text}.")),
        "caption": f"{metric} of each node with each seed at the last measurement, and their mean.",
        "wide": len(dots) > 12,
    }


def _partition(arms: list[Arm]) -> dict[str, Any] | None:
    run = next((run for arm in arms for run in arm.runs if run.partition() is not None), None)
    if run is None:
        return None
    kept = run.partition()
    assert kept is not None
    counts, classes, names, noun = np.array(kept["counts"]), kept["classes"], kept["nodes"], kept["noun"]
    sizes = np.array(kept["sizes"])
    shares = np.minimum(counts / np.maximum(sizes, 1)[:, None], 1)
    few = counts.size <= 600
    texts = [[str(c) if c else "" for c in row] for row in counts.tolist()] if few else None
    text = f"{len(counts)} nodes with {sizes.min()} to {sizes.max()} {noun} of {len(classes)} classes."
    if len(counts) <= _MOST_ROWS:
        text += " " + "; ".join(
            f"node {names[node]}: " + ", ".join(f"{c} of {name}" for c, name in zip(row, classes, strict=True) if c)
            for node, row in enumerate(counts.tolist())
        )
    title = f"{noun.capitalize()} of each class at each node"
    rows = names if len(names) <= _MOST_ROWS else None
    svg = charts.heat_map(shares, "class", "node", title, text, columns=classes, rows=rows, texts=texts)
    about = f"Seed {run.seed}. Shade: the share of the node's {noun}{f'; number: its number of {noun}' if few else ''}."
    each = f"{sizes.min()} to {sizes.max()}" if sizes.min() < sizes.max() else f"{sizes.max()}"
    figure = {"svg": _safe(svg), "caption": f"{len(counts)} nodes, {each} {noun} each."}
    return {"title": "Partition", "about": about, "figures": [{**figure, "wide": len(counts) > 40}]}


def _last_logged(run: Run, *keys: str) -> dict[str, Any] | None:
    return next((line for line in reversed(run.lines) if drawable(line["log"], *keys)), None)


def _of_each(arms: list[Arm], *keys: str) -> list[tuple[Arm, Run, dict[str, Any]]]:
    """Return arms whose first run has logged these keys, with this run and the last line that has them."""
    return [(arm, arm.runs[0], line) for arm in arms if (line := _last_logged(arm.runs[0], *keys)) is not None]


def _weights(arms: list[Arm]) -> dict[str, Any] | None:
    found = [(arm, arm.runs[0], last_matrix(arm.runs[0].lines, arm.runs[0].path)) for arm in arms]
    matrices = [(arm, run, *matrix) for arm, run, matrix in found if matrix is not None]
    figures = _matrices(matrices, "sender", "receiver", square=True)
    about = "Each row: the weights of all senders for one receiver."
    return {"title": "Fusion weights", "about": about, "figures": figures} if figures else None


def _ensembles(arms: list[Arm]) -> dict[str, Any] | None:
    matrices = [
        (arm, run, line["round"], line["log"]["teachers"], np.array(line["log"]["ensemble_weights"]))
        for arm, run, line in _of_each(arms, "ensemble_weights", "teachers")
    ]
    figures = _matrices(matrices, "teacher (node)", "class", square=False)
    about = "The weight of each teacher for each class."
    return {"title": "Teachers of the server", "about": about, "figures": figures} if figures else None


def _matrices(
    matrices: Sequence[tuple[Arm, Run, int, list[Any], np.ndarray]], x_label: str, y_label: str, *, square: bool
) -> list[dict[str, Any]]:
    """Return the figures of matrices, each with its arm, run, round and nodes. Columns are nodes; rows of a square one
    are too.
    """
    figures = []
    for arm, run, number, numbers, weights in matrices:
        nodes = [str(node) for node in numbers]
        rows = nodes if square else [str(row) for row in range(len(weights))]
        text = "; ".join(
            f"row {name}: the largest is {row.max():.2f}, of node {nodes[int(np.argmax(row))]}"
            for name, row in list(zip(rows, weights, strict=True))[:_MOST_ROWS]
        )
        texts = [[f"{weight:.2f}" if weight >= 0.005 else "" for weight in row] for row in weights.tolist()]
        svg = charts.heat_map(
            weights, x_label, y_label, f"Weights of {arm.name}, each row a {y_label}", text,
            columns=nodes, rows=rows, texts=texts if weights.size <= 256 else None,
        )  # fmt: skip
        figures.append({"svg": _safe(svg), "caption": f"{arm.name}, seed {run.seed}, round {number}."})
    return figures


def _features(arms: list[Arm]) -> dict[str, Any] | None:
    figures = []
    for arm, run, line in _of_each(arms, "feature_map"):
        points, labels = np.array(line["log"]["feature_map"]["points"]), np.array(line["log"]["feature_map"]["labels"])
        classes: list[str] = (run.partition() or {"classes": []})["classes"]
        classes = [*classes, *map(str, range(len(classes), int(labels.max()) + 1))]
        text = (
            f"{len(points)} test images of {len(np.unique(labels))} classes, by their first two principal components."
        )
        svg = charts.points(points, labels, classes, f"Features of {arm.name}", text)
        figures.append({"svg": _safe(svg), "caption": f"{arm.name}, seed {run.seed}, round {line['round']}."})
    return {"title": "Maps of features", "about": "", "figures": figures} if figures else None


def _images(arms: list[Arm]) -> tuple[dict[str, Any] | None, list[str]]:
    figures, problems = [], []
    for arm in arms:
        run = arm.runs[0]
        for folder in sorted(path for path in (run.path / "figures").glob("*") if path.is_dir()):
            if leads_out(folder, run.path):
                problems.append(f"{folder}: is not shown: it is a link to a place outside of {run.path}.")
                continue
            found = rows_of_images(folder)
            places = np.unique(np.linspace(0, len(found) - 1, min(_MOST_IMAGES, len(found))).round().astype(int))
            rows = []
            for path in [found[i] for i in places] if found else []:
                try:
                    rows.append(_image(path, run.path))
                except Exception as error:  # Pillow raises many types, such as for an incomplete file after a crash
                    problems.append(f"{path}: cannot be shown: {reason_of(error)}.")
            if rows:
                figures.append(
                    {"images": rows, "caption": f"{arm.name}: {folder.name}, seed {run.seed}.", "wide": True}
                )
    about = "Images that the server generated or that were distilled, unchanged; with the first and the last round."
    return ({"title": "Images over rounds", "about": about, "figures": figures} if figures else None), problems


def _image(path: Path, home: Path) -> dict[str, str]:
    strip = read_strip(path, home)
    number, captions = int(path.stem.removeprefix("round-")), ", ".join(strip.captions)
    return {
        "title": f"round {number}" + (f": {captions}" if captions else ""),
        "source": "data:image/png;base64," + base64.b64encode(strip.png).decode(),
        "alt": f"{path.parent.name} of round {number}: {captions or 'no captions'}",
    }


def _options(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return each strategy's options, each once; and which of them differ between its runs."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        table = {key: value for key, value in run.settings.items() if key.startswith("strategy.")}
        known = tables.setdefault(table.pop("strategy.name"), [])
        if table not in known:
            known.append(table)
    rows = []
    for name, known in tables.items():
        keys = sorted({key for table in known for key in table})
        for table in known:
            options_of = [
                (shown(table.get(key)), any(other.get(key) != table.get(key) for other in known)) for key in keys
            ]
            options = [(key.removeprefix("strategy."), *one) for key, one in zip(keys, options_of, strict=True)]
            rows.append({"name": name, "options": options})
    return rows


def _plain(value: Any) -> Any:
    """Return what the page shows without control characters; finished markup and numbers as they are."""
    return printable(value) if type(value) is str else value


def _safe(svg: str) -> Any:
    """Mark an SVG as safe markup: its names and values were escaped when it was drawn."""
    from markupsafe import Markup

    return Markup(svg)

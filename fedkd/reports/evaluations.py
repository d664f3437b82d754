"""Parts of the report page: what crossed the network, and the scores of models at the end of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runs.results import Arm
from . import charts
from .series import Series

_MOST_ROWS = 100  # the largest number of classes that are shown


def traffic(arms: list[Arm]) -> dict[str, Any]:
    """Return the table of what crossed the network: megabytes of each kind, each way, means over seeds."""
    rows = []
    for arm in arms:
        for way in ("up", "down"):
            kinds: dict[str, float] = {}
            for run in arm.runs:
                for line in run.lines:
                    for kind, size in line["bytes"][way].items():
                        kinds[kind] = kinds.get(kind, 0) + size / 1e6 / len(arm.runs)
            rows += [[arm.name, way, kind, f"{size:.4g}"] for kind, size in sorted(kinds.items())]
    about = "Megabytes that the method sent, by kind: from nodes to the server (up) and back (down); means over seeds."
    return {
        "title": "What crossed the network",
        "about": about,
        "header": ["strategy", "way", "kind", "MB"],
        "rows": rows,
    }


def evaluations(arms: list[Arm]) -> list[dict[str, Any]]:
    """Return the scores at the end: a table of models, one of classes, confusion matrices, calibration."""
    from markupsafe import Markup  # the names in a chart were escaped when it was drawn

    first = [(number, arm, arm.runs[0]) for number, arm in enumerate(arms)]
    found = [(*one, kept) for one in first if (kept := one[2].evaluation()) is not None]
    models, classes, matrices, curves = [], [], [], []
    for number, arm, run, kept in found:
        for name, one in kept["models"].items():
            whose = f"{arm.name}, {name}"
            numbers = [one[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece")]
            models.append([whose, str(run.seed), str(one["samples"]), *map(_percent, numbers)])
            classes += [
                [whose, label, str(of["samples"]), *(_percent(of[key]) for key in ("precision", "recall", "f1", "auc"))]
                for label, of in zip(kept["classes"], one["classes"], strict=True)
            ][:_MOST_ROWS]
            counts = np.array(one["confusion"])
            if len(counts) <= _MOST_ROWS:
                text = f"{one['samples']} samples, {_percent(one['accuracy'])} % are right."
                svg = charts.heat_map(
                    counts / np.maximum(counts.sum(1), 1)[:, None], "predicted class", "true class",
                    f"Confusion matrix of {whose}", text, columns=kept["classes"], rows=kept["classes"],
                    texts=[[str(c or "") for c in row] for row in counts.tolist()] if len(counts) <= 20 else None,
                )  # fmt: skip
                matrices.append({"svg": Markup(svg), "caption": f"{whose}, seed {run.seed}."})
            bins = [of for of in one["calibration"] if of["samples"]]
            x, y = [of["confidence"] for of in bins], [of["accuracy"] for of in bins]
            svg = charts.curves(
                [Series(number, arm.name, range(len(x)), x, y, y, y)], "confidence", "accuracy",
                f"Calibration of {whose}", f"Expected calibration error {one['ece']:.3f} over {len(bins)} bins.",
            )  # fmt: skip
            curves.append({"svg": Markup(svg), "caption": f"{whose}, seed {run.seed}: ECE {one['ece']:.3f}."})
    if not found:
        return []
    about = "Of the first seed, in percent. global: on the global test set; personal: nodes' models, each on its own."
    heads = ["model", "seed", "samples", "accuracy", "balanced accuracy", "macro F1", "AUC", "ECE"]
    of_classes = ["model", "class", "samples", "precision", "recall", "F1", "AUC"]
    return [
        {"title": "Scores at the end", "about": about, "header": heads, "rows": models},
        {"title": "Each class", "about": "In percent.", "header": of_classes, "rows": classes},
        {"title": "Confusion matrices", "about": "Shade: the share of the true class.", "figures": matrices},
        {"title": "Calibration", "about": "Accuracy against confidence, in 15 bins.", "figures": curves},
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"

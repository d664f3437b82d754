"""Series of a comparison: an arm's means over seeds with a band, and the values of its nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ..messages.metric_names import is_fraction, metric_range
from ..runs.results import Arm
from .estimates import estimate

AGAINST = ("rounds", "megabytes", "seconds")  # what curves are drawn against


@dataclass(frozen=True)
class Series:
    """A curve with a band: number (for its look), name; for each point its round, x, y, and the ends of the band."""

    number: int
    name: str
    rounds: Sequence[int]
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def series_of(arm: Arm, metric: str, what: str, number: int) -> Series:
    """Return an arm's mean over seeds at each round that any run has measured, with a band of one deviation.

    Fractions are in percent. `what`: of `AGAINST`; x is the mean over seeds too. `number`: of the series.
    """
    scale = 100.0 if is_fraction(metric) else 1.0
    at: dict[int, list[tuple[float, float]]] = {}
    for run in arm.runs:
        for i in run.measured(metric):
            place = {"rounds": run.lines[i]["round"], "megabytes": run.megabytes[i], "seconds": run.seconds[i]}[what]
            at.setdefault(run.lines[i]["round"], []).append((place, scale * run.lines[i]["metrics"][metric]))
    rounds = sorted(at)
    found = [estimate([value for _, value in at[key]]) for key in rounds]
    means = np.array([one.mean for one in found])
    half = np.array([0.0 if math.isnan(one.deviation) else one.deviation for one in found])
    least, most = (scale * limit for limit in metric_range(metric))
    low, high = np.clip(means - half, least, most), np.clip(means + half, least, most)
    x = [fmean(place for place, _ in at[key]) for key in rounds]
    return Series(number, arm.name, rounds, x, means.tolist(), low.tolist(), high.tolist())


def nodes_of(arm: Arm, metric: str) -> list[tuple[int, int, float]]:
    """Return the seed, the node and the last value of each node with each seed, without values that are not finite."""
    return [
        (run.seed, node, value)
        for run in arm.runs
        for node, value in run.of_nodes(metric).items()
        if math.isfinite(value)
    ]

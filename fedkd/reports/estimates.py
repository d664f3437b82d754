"""Estimates over seeds: means, deviations, intervals, and the p of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Literal, NamedTuple

import numpy as np

from ..streams import numpy_stream

IntervalName = Literal["student", "bootstrap"]
LEVEL = 0.95  # the level of confidence intervals
LEAST_SEEDS = 3  # with fewer, a deviation and an interval say nothing, so the values are shown
DRAWS = 10_000  # of a bootstrap


class Estimate(NamedTuple):
    """A mean over seeds, its standard deviation (n - 1), its 95 % interval, and the values of the seeds.

    Deviation and interval are NaN with fewer than three seeds; all are NaN if a value is not finite, or there is none.
    """

    mean: float
    deviation: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def seeds(self) -> int:
        """Return the number of values."""
        return len(self.values)


def estimate(
    values: Sequence[float],
    limits: tuple[float, float] = (-math.inf, math.inf),
    interval: IntervalName = "student",
) -> Estimate:
    """Return the mean of values, their deviation, and the interval of the mean, mean +- t(0.975, n - 1) s / sqrt(n).

    `limits`: the smallest and largest possible value; the interval ends there. `interval`: `bootstrap` for the middle
    95 % of the means of values that are drawn again with replacement (Efron, 1979).
    """
    mean = fmean(values) if values and all(map(math.isfinite, values)) else math.nan
    if len(values) < LEAST_SEEDS or math.isnan(mean):
        return Estimate(mean, math.nan, math.nan, math.nan, tuple(values))
    low, high = (_student if interval == "student" else _bootstrap)(values)
    return Estimate(mean, stdev(values), max(limits[0], low), min(limits[1], high), tuple(values))


def _student(values: Sequence[float]) -> tuple[float, float]:
    from scipy.special import stdtrit  # Student's quantiles; scipy.stats takes a second to import

    half = float(stdtrit(len(values) - 1, 0.5 + LEVEL / 2)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _bootstrap(values: Sequence[float]) -> tuple[float, float]:
    drawn = numpy_stream(0, 0, "server", "bootstrap").choice(np.array(values), (DRAWS, len(values)))
    low, high = np.quantile(drawn.mean(1), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of Student's paired test that the mean difference is 0; None if it is not defined."""
    from scipy.special import stdtr

    if len(differences) < 2 or not all(map(math.isfinite, differences)) or stdev(differences) == 0:
        return None
    t = fmean(differences) / (stdev(differences) / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for their number (Holm, 1979): max over smaller ones of (m - rank) p, at most 1."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    adjusted: list[float | None] = [None] * len(ps)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * (ps[i] or 0.0)))
        adjusted[i] = running
    return adjusted

"""The comparison of runs: means over seeds, paired differences, fairness over nodes, cost to a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from ..config import flattened
from ..errors import InputError, on_one_line
from ..masking import masked
from ..messages.metric_names import metric_range
from ..runs.metrics import lower_is_better
from ..runs.results import (
    Arm,
    Run,
    arms_of,
    changes_between,
    check_metric,
    differing,
    shared_metrics,
    target_reached,
    worst_decile,
)

_LEVEL = 0.95  # the level of confidence intervals
LEAST_SEEDS = 3  # with fewer, a deviation and an interval say nothing, so the values are shown


class Estimate(NamedTuple):
    """A mean over seeds, its standard deviation (n - 1), Student's 95 % interval, and the values of the seeds.

    Deviation and interval are NaN with fewer than three seeds; all are NaN if a value is not finite.
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


class Paired(NamedTuple):
    """Differences to the baseline on matched seeds, the number of gains, and the p of Student's paired test.

    Seeds with a value that is not finite are left out. `p` is two-sided and adjusted for the number of arms (Holm,
    1979); None with fewer than two matched seeds, if a seed is left out, and if all differences are equal.
    """

    difference: Estimate
    wins: int
    p: float | None


class Reached(NamedTuple):
    """Means over the runs that have reached a target: rounds, megabytes, seconds; and the number of these runs."""

    rounds: float
    megabytes: float
    seconds: float
    runs: int


@dataclass(frozen=True)
class Row:
    """One arm of a comparison."""

    arm: Arm
    final: Estimate
    best: Estimate
    paired: Paired | None  # None for the baseline itself
    worst_decile: float | None  # over nodes, at the last measurement; mean over seeds. None if nodes have no values
    spread: float | None  # the standard deviation over nodes
    reached: Reached | None  # None without a target
    megabytes: float
    seconds: float
    failures: int


@dataclass(frozen=True)
class Comparison:
    """Arms that differ only in their strategy, or also in given keys, compared by one metric."""

    metric: str
    title: str
    target: float | None
    rows: list[Row]
    problems: list[str]


def estimate(values: Sequence[float], limits: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """Return the mean of values, their deviation, and the interval mean +- t(0.975, n - 1) s / sqrt(n).

    `limits`: the smallest and largest possible value; the interval ends there.
    """
    from scipy.special import stdtrit  # Student's quantiles; scipy.stats takes a second to import

    mean = fmean(values) if all(map(math.isfinite, values)) else math.nan
    if len(values) < LEAST_SEEDS or math.isnan(mean):
        return Estimate(mean, math.nan, math.nan, math.nan, tuple(values))
    deviation = stdev(values)
    half = float(stdtrit(len(values) - 1, 0.5 + _LEVEL / 2)) * deviation / math.sqrt(len(values))
    low, high = limits
    return Estimate(mean, deviation, max(low, mean - half), min(high, mean + half), tuple(values))


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


def split(
    runs: Sequence[Run], by: Sequence[str], across: Sequence[str], *, accept_changes: bool = False
) -> dict[str, list[Run]]:
    """Return comparable groups of runs under their titles: one for each combination of values of the keys `by`.

    Raises InputError if runs of a group differ in a key that is neither the strategy's nor in `across`, if images,
    files or versions have changed between them, unless `accept_changes`, and for keys that no run has.
    """
    known = {key for run in runs for key in flattened(masked(run.config))}
    for option, keys in (("--by", by), ("--across", across)):
        for key in keys:
            if not any(name == key or name.startswith(f"{key}.") for name in known):
                raise InputError(f"{option} {key}: no run has such a key.")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        parts = []
        for key in by:
            flat = flattened(masked(run.config))
            mine = {name: value for name, value in flat.items() if name == key or name.startswith(f"{key}.")}
            parts += [f"{name} = {value}" for name, value in sorted(mine.items())] or [f"{key} unset"]
        groups.setdefault(on_one_line(", ".join(parts)), []).append(run)
    for group in groups.values():
        _refuse_unlike(group, across, accept_changes)
    return groups


def _refuse_unlike(runs: Sequence[Run], across: Sequence[str], accept_changes: bool) -> None:
    found = differing(runs)
    refused = {key: values for key, values in found.items() if not key.startswith(tuple(across))}
    if refused:
        values_of = "; ".join(
            f"{on_one_line(key, 100)} is "
            + " or ".join("unset" if v is None else on_one_line(repr(v), 100) for v in values[:5])
            for key, values in list(refused.items())[:10]
        )
        parts = sorted({".".join(key.split(".")[:2]) for key in refused})  # the keys of a partition belong together
        parts = [on_one_line(part, 100) for part in parts[:10]]
        by, all_the_same = ("".join(f"{option} {part} " for part in parts) for option in ("--by", "--across"))
        raise InputError(
            f"These runs are not alike in more than their strategies: {values_of}. "
            f"{by}makes a table of each; {all_the_same}compares them all the same."
        )
    changed = [] if accept_changes else changes_between(runs, data=_same_data(found) and "data" not in across)
    if changed:
        more = f" So do {len(changed) - 1} more pairs." if len(changed) > 1 else ""
        raise InputError(
            f"{changed[0]}.{more} Run them again in a new folder, or compare them all the same with --accept-changes."
        )


def _same_data(differing_keys: Iterable[str]) -> bool:
    return not any(key.startswith("data.") for key in differing_keys)


def compare(
    runs: Sequence[Run],
    *,
    metric: str | None = None,
    target: float | None = None,
    baseline: str | None = None,
    title: str = "",
) -> Comparison:
    """Compare comparable runs (see `split`) by a metric, by default the first that all runs have.

    `baseline`: the arm or the strategy of the differences; by default the first. Runs without the metric are left out
    and reported. Raises InputError for a metric that no run has and for an unknown baseline.
    """
    arms, problems = arms_of(runs)
    problems += [f"{change}." for change in changes_between(runs, data=_same_data(differing(runs)))]
    if metric is None:
        shared = shared_metrics(arms)
        if not shared:
            have = "; ".join(f"{arm.name}: {', '.join(arm.runs[0].metrics()) or 'none'}" for arm in arms)
            raise InputError(f"There is no metric that all runs have; name one by --metric. They have: {have}.")
        metric = shared[0]
    check_metric(metric, arms)
    kept: list[Arm] = []
    for arm in arms:
        having = [run for run in arm.runs if metric in run.metrics()]
        problems += [f"{run.path}: has no {metric}; left out." for run in arm.runs if run not in having]
        problems += [
            f"{run.path}: {metric} ends as {value}, so {arm.name} has no mean; its seed is not in differences "
            "and gains."
            for run in having
            if not math.isfinite(value := final_value(run, metric))
        ]
        if having:
            kept.append(Arm(arm.name, having))
    base = _baseline(kept, baseline)
    sign = -1.0 if lower_is_better(metric) else 1.0
    paired: list[Paired | None] = []
    ps = [None if arm is base else paired_p(_differences(arm, base, metric)) for arm in kept]
    low, high = metric_range(metric)
    for arm, p in zip(kept, holm(ps), strict=True):
        differences = [] if arm is base else list(filter(math.isfinite, _differences(arm, base, metric)))
        wins = sum(sign * difference > 0 for difference in differences)
        paired.append(Paired(estimate(differences, (low - high, high - low)), wins, p) if differences else None)
        if arm is not base and not differences:
            problems.append(f"{arm.name}: no seed that ends with a number in common with {base.name}; no difference.")
    rows = [_row(arm, pair, metric, target) for arm, pair in zip(kept, paired, strict=True)]
    if title:
        problems = [f"{title}: {problem}" for problem in problems]
    return Comparison(metric, title, target, rows, problems)


def _baseline(arms: Sequence[Arm], wanted: str | None) -> Arm:
    if wanted is None:
        return arms[0]
    found = [arm for arm in arms if wanted in (arm.name, arm.runs[0].strategy)]
    if len(found) != 1:
        names = ", ".join(repr(arm.name) for arm in arms)
        raise InputError(f"--baseline {wanted!r}: {'several arms are' if found else 'no arm is'} that; valid: {names}.")
    return found[0]


def final_value(run: Run, metric: str) -> float:
    """Return the last measured value of a metric."""
    return float(run.lines[run.measured(metric)[-1]]["metrics"][metric])


def best_value(run: Run, metric: str) -> float:
    """Return the best finite value of a metric in a run; NaN if there is none."""
    values = [v for i in run.measured(metric) if math.isfinite(v := run.lines[i]["metrics"][metric])]
    return float((min if lower_is_better(metric) else max)(values, default=math.nan))


def _differences(arm: Arm, base: Arm, metric: str) -> list[float]:
    of_base = {run.seed: final_value(run, metric) for run in base.runs}
    return [final_value(run, metric) - of_base[run.seed] for run in arm.runs if run.seed in of_base]


def _row(arm: Arm, paired: Paired | None, metric: str, target: float | None) -> Row:
    nodes = [list(values.values()) for run in arm.runs if (values := run.of_nodes(metric))]
    reached = None
    if target is not None:
        there = [found for run in arm.runs if (found := target_reached(run, metric, target)) is not None]
        means = [fmean(column) for column in zip(*there, strict=True)] if there else [math.nan] * 3
        reached = Reached(means[0], means[1], means[2], len(there))
    return Row(
        arm,
        final=estimate([final_value(run, metric) for run in arm.runs], metric_range(metric)),
        best=estimate([best_value(run, metric) for run in arm.runs], metric_range(metric)),
        paired=paired,
        worst_decile=fmean(worst_decile(one, metric) for one in nodes) if nodes else None,
        spread=fmean(math.sqrt(fmean((v - fmean(one)) ** 2 for v in one)) for one in nodes) if nodes else None,
        reached=reached,
        megabytes=fmean(run.megabytes[-1] for run in arm.runs),
        seconds=fmean(run.seconds[-1] for run in arm.runs),
        failures=sum(len(line["failures"]) for run in arm.runs for line in run.lines),
    )

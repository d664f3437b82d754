"""The comparison of runs: means over seeds, paired differences, fairness over nodes, cost to a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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
from .estimates import Estimate, IntervalName, estimate, holm, paired_p
from .selection import arms_named, arranged, check_known, of_group


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
    """One arm of a comparison. An arm without the metric has estimates of no values."""

    arm: Arm
    final: Estimate
    best: Estimate
    paired: Paired | None  # None for the baseline itself, and without a seed in common
    worst_decile: float | None  # over nodes, at the last measurement; mean over seeds. None if nodes have no values
    spread: float | None  # the standard deviation over nodes
    reached: Reached | None  # None without a target
    megabytes: float
    seconds: float
    failures: int
    beside: dict[str, Estimate]  # the last values of other metrics; of no values, if the arm does not have it


@dataclass(frozen=True)
class Comparison:
    """Arms that differ only in their strategy, or also in given keys, compared by one metric.

    `baseline`: the name of the arm of the differences, which is a row or not. `beside`: other metrics, side by side.
    """

    metric: str
    title: str
    target: float | None
    rows: list[Row]
    problems: list[str]
    baseline: str
    interval: IntervalName
    beside: tuple[str, ...]


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
    names: Mapping[str, str] | None = None,
    rows: Sequence[str] = (),
    beside: Sequence[str] = (),
    interval: IntervalName = "student",
) -> Comparison:
    """Compare comparable runs (see `split`) by a metric, by default the first that all runs have.

    `baseline`: the arm or the strategy of the differences; by default the first row. `names`: other names for arms or
    strategies, and `rows`: those that are shown, in this order (see `selection.arranged`). `beside`: metrics whose last
    values are shown too. Runs without the metric, and without one of `beside`, are left out and reported. `interval`:
    see `estimate`. Raises InputError for a metric that no run has and for an unknown baseline, name or row.
    """
    arms, problems = arms_of(runs)
    problems += [f"{change}." for change in changes_between(runs, data=_same_data(differing(runs)))]
    metric = metric or _first_metric(arms, beside)
    for one in (metric, *beside):
        check_metric("--metric" if one == metric else "--columns", one, arms)
    shown, problems_of_runs = _having(arms, metric, beside)
    problems += problems_of_runs
    names = names or {}
    kept = arranged(shown, names, rows)
    base = kept[0][0] if baseline is None else _baseline(shown, baseline, names)
    sign = -1.0 if lower_is_better(metric) else 1.0
    ps = [None if arm is base else paired_p(_differences(arm, base, metric)) for arm, _ in kept]
    low, high = metric_range(metric)
    found = []
    for (arm, as_shown), p in zip(kept, holm(ps), strict=True):
        differences = [] if arm is base else list(filter(math.isfinite, _differences(arm, base, metric)))
        wins = sum(sign * difference > 0 for difference in differences)
        paired = Paired(estimate(differences, (low - high, high - low), interval), wins, p) if differences else None
        if arm is not base and not differences and _values(arm, metric):
            problems.append(f"{arm.name}: no seed that ends with a number in common with {base.name}; no difference.")
        found.append(_row(as_shown, paired, metric, target, beside, interval))
    if title:
        problems = [f"{title}: {problem}" for problem in problems]
    (name,) = (one.name for arm, one in arranged(shown, names, ()) if arm is base)
    return Comparison(metric, title, target, found, problems, name, interval, tuple(beside))


def compare_groups(
    groups: Mapping[str, Sequence[Run]],
    *,
    metric: str | None = None,
    target: float | None = None,
    baseline: str | None = None,
    names: Mapping[str, str] | None = None,
    rows: Sequence[str] = (),
    beside: Sequence[str] = (),
    interval: IntervalName = "student",
) -> tuple[list[Comparison], list[str]]:
    """Compare each group of runs (see `split`); return the comparisons, and a text on each group that is refused.

    The options are those of `compare`. A group may lack some of the names and rows. Raises InputError for names and
    rows that no group has, and if all groups are refused.
    """
    arms = {title: arms_of(runs)[0] for title, runs in groups.items()}
    check_known(list(arms.values()), names or {}, rows)
    found, refused = [], []
    for title, runs in groups.items():
        names_here, rows_here = of_group(arms[title], names or {}, rows)
        try:
            if rows and not rows_here:
                raise InputError("none of the --rows is here.")
            found.append(
                compare(
                    runs, metric=metric, target=target, baseline=baseline, title=title, names=names_here,
                    rows=rows_here, beside=beside, interval=interval,
                )
            )  # fmt: skip
        except InputError as error:  # the other groups can still be shown
            refused.append(f"{title}: {error}" if title else str(error))
    if not found:
        raise InputError("\n".join(refused))
    return found, refused


def _first_metric(arms: Sequence[Arm], beside: Sequence[str]) -> str:
    if found := [*shared_metrics(arms), *beside]:
        return found[0]
    have = "; ".join(f"{arm.name}: {', '.join(arm.runs[0].metrics()) or 'none'}" for arm in arms)
    raise InputError(
        "There is no metric that all runs have; name one by --metric, or several side by side by --columns. "
        f"They have: {have}."
    )


def _having(arms: Sequence[Arm], metric: str, beside: Sequence[str]) -> tuple[list[Arm], list[str]]:
    """Return the arms of runs that have one of the metrics, and a line about each run without, or that diverged."""
    kept: list[Arm] = []
    problems = []
    for arm in arms:
        having = [run for run in arm.runs if {metric, *beside} & set(run.metrics())]
        problems += [f"{run.path}: has no {metric}; left out." for run in arm.runs if run not in having]
        problems += [
            f"{run.path}: {metric} ends as {value}, so {arm.name} has no mean; its seed is not in differences "
            "and gains."
            for run in having
            if metric in run.metrics() and not math.isfinite(value := final_value(run, metric))
        ]
        if having:
            kept.append(Arm(arm.name, having))
    return kept, problems


def _baseline(arms: Sequence[Arm], wanted: str, names: Mapping[str, str]) -> Arm:
    found = arms_named(arms, wanted, names)
    if len(found) != 1:
        valid = ", ".join(repr(arm.name) for arm in arms)
        raise InputError(f"--baseline {wanted!r}: {'several arms are' if found else 'no arm is'} that; valid: {valid}.")
    return found[0]


def _values(arm: Arm, metric: str) -> list[float]:
    return [final_value(run, metric) for run in arm.runs if metric in run.metrics()]


def final_value(run: Run, metric: str) -> float:
    """Return the last measured value of a metric."""
    return float(run.lines[run.measured(metric)[-1]]["metrics"][metric])


def best_value(run: Run, metric: str) -> float:
    """Return the best finite value of a metric in a run; NaN if there is none."""
    values = [v for i in run.measured(metric) if math.isfinite(v := run.lines[i]["metrics"][metric])]
    return float((min if lower_is_better(metric) else max)(values, default=math.nan))


def _differences(arm: Arm, base: Arm, metric: str) -> list[float]:
    of_base = {run.seed: final_value(run, metric) for run in base.runs if metric in run.metrics()}
    mine = [run for run in arm.runs if run.seed in of_base and metric in run.metrics()]
    return [final_value(run, metric) - of_base[run.seed] for run in mine]


def _row(
    arm: Arm,
    paired: Paired | None,
    metric: str,
    target: float | None,
    beside: Sequence[str],
    interval: IntervalName,
) -> Row:
    having = [run for run in arm.runs if metric in run.metrics()]
    nodes = [list(values.values()) for run in arm.runs if (values := run.of_nodes(metric))]
    reached = None
    if target is not None:
        there = [found for run in arm.runs if (found := target_reached(run, metric, target)) is not None]
        means = [fmean(column) for column in zip(*there, strict=True)] if there else [math.nan] * 3
        reached = Reached(means[0], means[1], means[2], len(there))
    return Row(
        arm,
        final=estimate(_values(arm, metric), metric_range(metric), interval),
        best=estimate([best_value(run, metric) for run in having], metric_range(metric), interval),
        paired=paired,
        worst_decile=fmean(worst_decile(one, metric) for one in nodes) if nodes else None,
        spread=fmean(math.sqrt(fmean((v - fmean(one)) ** 2 for v in one)) for one in nodes) if nodes else None,
        reached=reached,
        megabytes=fmean(run.megabytes[-1] for run in arm.runs),
        seconds=fmean(run.seconds[-1] for run in arm.runs),
        failures=sum(len(line["failures"]) for run in arm.runs for line in run.lines),
        beside={one: estimate(_values(arm, one), metric_range(one), interval) for one in beside},
    )

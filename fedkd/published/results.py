"""The runs of a published table, and what they give: figures beside the published ones, and whether these agree."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..runs.metrics import surroundings
from ..runs.results import Run, read_run
from ..runs.sweep import Job, Plan, is_finished, plan_of, resolved
from . import distillations, readings
from .tables import Figure, PublishedTable, Reading, Row, run_name

RESULT = "result.json"
_POINT = 1.0  # percentage points, where no spread is published
_SHARE = 0.1  # of a number of rounds: the two tables of McMahan et al. (2017) differ by it


class Ours(NamedTuple):
    """What the runs of one setting give: the numbers of each run, their mean, their deviation, seconds of each run.

    `setting`: the name of the runs' folders, without the seed.
    """

    setting: str
    numbers: dict[int, list[float]]
    value: float | None
    spread: float | None
    seconds: dict[int, float]


class Outcome(NamedTuple):
    """A row and its result. `agrees`: None if it is not judged. `every`: of all settings; `ours`: the best."""

    row: Row
    every: list[Ours]
    ours: Ours | None
    agrees: bool | None
    reference: Figure | None


def jobs_of(table: PublishedTable, rows: Sequence[Row], seeds: int, out: Path, *, quick: bool = False) -> Plan:
    """Return the runs of rows that are to be started or continued, and the finished ones. Raises InputError.

    There are none of a table of distillations: see `distillations.jobs_of`.
    """
    if table.kind == "distill":
        return plan_of([])
    jobs: dict[str, Job] = {}
    for row in rows:
        for seed in range(seeds):
            for setting, config in table.configs_of(row, quick=quick, seed=seed, out=out).items():
                name = run_name(setting, seed)
                jobs[name] = Job(name, out / name, resolved(config))
    return plan_of(list(jobs.values()))


def curve_of(run: Run, reading: Reading) -> list[tuple[int, float]]:
    """Return a run's values of the reading's metric, in its rounds. Raises InputError if there are none."""
    end = reading.last if reading.last is not None else run.reached
    found = [
        (line["round"], line["metrics"][reading.metric])
        for line in run.lines
        if reading.metric in line["metrics"] and reading.first <= line["round"] <= end
    ]
    if not found:
        raise InputError(f"{run.path}: {reading.metric} was not measured in the rounds {reading.first} to {end}.")
    return found


def numbers_of(run: Run, reading: Reading) -> list[float]:
    """Return the numbers that a reading takes from a run, in percent or in rounds; none if a target is not reached."""
    if reading.name == "networks":
        return [100 * value for value in distillations.of_networks(run, reading.metric)]
    curve = curve_of(run, reading)
    if reading.of is not None:
        return [100 * value for value in _at_best(run, reading, curve)]
    if reading.name == "best_of_nodes":
        rounds = {number for number, _ in curve}
        values = [line["nodes"].get(reading.metric, {}) for line in run.lines if line["round"] in rounds]
        return [100 * value for value in readings.best_of_nodes(values)]
    if reading.name in ("nodes", "running_pools"):
        return [100 * value for value in _of_nodes(run, reading)]
    if reading.target is not None:
        return readings.crossing(curve, reading.target)
    if reading.count is not None:
        found = (readings.best_rounds if reading.name == "best_rounds" else readings.last_rounds)(curve, reading.count)
    elif reading.decay is not None:
        found = readings.moving_average(curve, reading.decay)
    else:
        found = {"last": readings.last, "best": readings.best}[reading.name](curve)
    return [100 * value for value in found]


def _at_best(run: Run, reading: Reading, curve: readings.Curve) -> list[float]:
    try:
        return readings.at_best(curve, curve_of(run, reading.model_copy(update={"metric": reading.of})))
    except KeyError as error:
        raise InputError(
            f"{run.path}: {reading.metric} was not measured in round {error}, the best one by {reading.of}."
        ) from error


def _of_nodes(run: Run, reading: Reading) -> list[float]:
    own = run.of_nodes(reading.metric)
    nodes = sorted(own)
    if reading.beside is None:
        return [own[node] for node in nodes]
    beside, partition = run.of_nodes(reading.beside), run.partition()
    if partition is None or beside.keys() != own.keys():
        raise InputError(f"{run.path}: {reading.beside} or its partition.json is missing.")
    classes = [sum(count > 0 for count in partition["counts"][node]) for node in nodes]  # equally many tests of each
    return readings.running_pools([beside[node] for node in nodes], [own[node] for node in nodes], classes)


def ours_of(setting: str, reading: Reading, runs: Sequence[Run]) -> Ours:
    """Return what finished runs of a setting give. If one does not reach a target, the setting has no number."""
    numbers = {run.seed: numbers_of(run, reading) for run in runs}
    seconds = {run.seed: float((run.summary or {})["seconds"]["total"]) for run in runs}
    if not all(numbers.values()):
        return Ours(setting, numbers, None, None, seconds)
    every = [value for found in numbers.values() for value in found]
    if reading.spread == "numbers":
        return Ours(setting, numbers, statistics.fmean(every), statistics.pstdev(every), seconds)
    means = [statistics.fmean(found) for found in numbers.values()]
    spread = statistics.stdev(means) if len(means) > 1 else None
    if reading.spread == "within":
        spread = statistics.fmean(statistics.pstdev(found) for found in numbers.values())
    return Ours(setting, numbers, statistics.fmean(means), spread, seconds)


def best_of(every: Sequence[Ours], reading: Reading) -> Ours | None:
    """Return the setting with the best figure: the fewest rounds, or the most percent; None of none.

    Without any figure it is the first one.
    """
    sign = -1.0 if reading.unit == "rounds" else 1.0
    with_figure = [one for one in every if one.value is not None]
    return max(with_figure, key=lambda one: sign * (one.value or 0.0), default=next(iter(every), None))


def agrees(value: float, spread: float | None, published: Figure, reading: Reading) -> bool:
    """Return whether a number of ours agrees with a published one.

    In percent: the intervals of value and spread overlap; where no spread is published, they differ by at most one
    point. In rounds: they differ by at most a tenth of the published number.
    """
    difference = abs(value - published.value)
    if reading.unit == "rounds":
        return difference <= _SHARE * published.value
    return difference <= (_POINT if published.spread is None else published.spread + (spread or 0.0))


def outcomes(table: PublishedTable, out: Path, *, quick: bool = False) -> list[Outcome]:
    """Return all rows of a table with the results of their finished runs in a folder.

    A row is judged by what the authors' code gives, if the table has it, else by the paper. A corrected form is not
    judged, nor is a trial (`quick`).
    """
    found = []
    for row in table.rows:
        reading, every = table.reading_of(row), []
        for setting in table.settings_of(row, quick=quick):
            runs = _finished(table, row, setting, out, quick)
            if runs:
                every.append(ours_of(setting, reading, runs))
        ours, reference = best_of(every, reading), row.code or row.paper
        good = None
        if not quick and row.form == "published" and reference is not None and ours is not None:
            good = ours.value is not None and agrees(ours.value, ours.spread, reference, reading)
        found.append(Outcome(row, every, ours, good, reference))
    return found


def _finished(table: PublishedTable, row: Row, setting: str, out: Path, quick: bool) -> list[Run]:
    """Return the finished runs of a setting, by seed. Raises InputError for one with another config."""
    seeds = sorted(int(home.name.rpartition("=")[2]) for home in out.glob(f"{setting},seed=*"))
    if table.kind == "distill":
        return distillations.finished(table, row, setting, seeds, out, quick=quick)
    found = []
    for seed in seeds:
        config = resolved(table.configs_of(row, quick=quick, seed=seed, out=out)[setting])
        job = Job(run_name(setting, seed), out / run_name(setting, seed), config)
        if is_finished(job):
            found.append(read_run(job.path))
    return found


def as_record(name: str, table: PublishedTable, found: Sequence[Outcome], out: Path, *, quick: bool) -> dict[str, Any]:
    """Return the results of a table as plain data: of each row its numbers, and of each run its curve."""
    rows = []
    for one in found:
        row, reading = one.row, table.reading_of(one.row)
        rows.append(
            {
                "row": row.name, "method": row.method, "cell": row.cell, "form": row.form, "unit": reading.unit,
                "reading": reading.text(),
                "paper": None if row.paper is None else row.paper.model_dump(),
                "code": None if row.code is None else row.code.model_dump(),
                "ours": None if one.ours is None else one.ours.setting,
                "settings": [_setting_record(ours, table, reading, out) for ours in one.every],
                "agrees": one.agrees, "deviations": [*table.deviations, *row.deviations],
            }
        )  # fmt: skip
    about = {"table": name, "title": table.title, "paper": table.paper, "code": table.code, "note": table.note}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {**about, "date": today, "quick": quick, **surroundings(), "rows": rows}


def _setting_record(ours: Ours, table: PublishedTable, reading: Reading, out: Path) -> dict[str, Any]:
    read = distillations.read if table.kind == "distill" else read_run
    curves = {str(seed): curve_of(read(out / run_name(ours.setting, seed)), reading) for seed in ours.numbers}
    return {
        "setting": ours.setting, "value": ours.value, "spread": ours.spread,
        "numbers": {str(seed): numbers for seed, numbers in ours.numbers.items()},
        "seconds": {str(seed): round(seconds, 1) for seed, seconds in ours.seconds.items()},
        "curves": {seed: [[n, round(value, 6)] for n, value in curve] for seed, curve in curves.items()},
    }  # fmt: skip


def as_text(table: PublishedTable, found: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return the results of a table as the head and the cells of a printed table."""
    header = ["row", "paper", "code", "ours", "difference", "agrees", "runs", "min"]
    rows = []
    for row, _, ours, good, reference in found:
        unit = table.reading_of(row).unit
        cells = [f"{row.method}, {row.cell}" + ("" if row.form == "published" else f", {row.form}")]
        cells += [_figure(one, unit) for one in (row.paper, row.code)]
        if ours is None:
            rows.append([*cells, "not run", "", "", "0", ""])
            continue
        difference = (
            "" if ours.value is None or reference is None else f"{ours.value - reference.value:+.{_DIGITS[unit]}f}"
        )
        if row.grid is not None:
            cells[0] += f" ({ours.setting.removeprefix(row.name + ',')})"
        value = _figure(None if ours.value is None else Figure(value=ours.value, spread=ours.spread), unit)
        judged = {True: "yes", False: "no", None: ""}[good]
        minutes = statistics.fmean(ours.seconds.values()) / 60
        cells += [value or "not reached", difference, judged, str(len(ours.numbers)), f"{minutes:.1f}"]
        rows.append(cells)
    return header, rows


_DIGITS = {"percent": 2, "rounds": 1}


def _figure(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return ""
    text = f"{figure.value:.{_DIGITS[unit]}f}"
    return text if figure.spread is None else f"{text} ± {figure.spread:.{_DIGITS[unit]}f}"

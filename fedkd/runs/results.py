"""Reads runs from their folders, and sorts them into arms: runs that differ in their seeds only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..config import flattened, read_table
from ..errors import InputError, on_one_line, reason_of, unknown
from ..files import leads_out, parse_json, read
from ..masking import masked
from ..messages.metric_names import MAIN, is_main
from .forms import (
    MOST_BYTES,
    Evaluation,
    OriginFile,
    Partition,
    RunConfig,
    Summary,
    read_form,
    read_lines,
    wrong_fields,
)
from .metrics import lower_is_better
from .origin import ORIGIN, Origin, differences, read_origin
from .run_folder import CONFIG, EVALUATION, METRICS, MOST_ROWS, PARTITION, SUMMARY

NO_RESULT = ("engine.", "checkpoint.", "trackers", "data.root", "data.download")  # keys that do not change results


@dataclass(frozen=True)
class Run:
    """The content of a run folder: its config as plain tables, its rounds, and its summary (None if not ended)."""

    path: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return int(self.config["seed"])

    @property
    def strategy(self) -> str:
        """Return the name of the run's strategy."""
        return on_one_line(self.config["strategy"]["name"])

    @property
    def status(self) -> str:
        """Return `completed`, `failed`, `interrupted`, or `unfinished` for a run that still runs or was killed."""
        return "unfinished" if self.summary is None else str(self.summary["status"])

    @property
    def reached(self) -> int:
        """Return the last finished round."""
        return int(self.lines[-1]["round"]) if self.lines else 0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return all keys of the config that can change results, dotted, except the seed."""
        return {key: value for key, value in flattened(self.config).items() if not key.startswith(("seed", *NO_RESULT))}

    @cached_property
    def origin(self) -> Origin:
        """Return what the run began with; empty if it was not kept, or is damaged."""
        try:
            return read_origin(self.path) or {}
        except InputError:
            return {}

    @property
    def arm(self) -> str:
        """Return the settings as text: equal for runs that differ in their seeds only."""
        return json.dumps(self.settings, sort_keys=True, default=str)

    def metrics(self) -> list[str]:
        """Return the names of all metrics that any round has."""
        return sorted({name for line in self.lines for name in line["metrics"]})

    def measured(self, metric: str) -> list[int]:
        """Return the positions of the lines that have a metric."""
        return [i for i, line in enumerate(self.lines) if metric in line["metrics"]]

    @cached_property
    def megabytes(self) -> list[float]:
        """Return the method's total traffic up to each line, included, in both directions, in 10^6 bytes."""
        return list(accumulate(sum(sum(way.values()) for way in line["bytes"].values()) / 1e6 for line in self.lines))

    @cached_property
    def seconds(self) -> list[float]:
        """Return the total seconds of rounds up to each line, included, without evaluation."""
        return list(accumulate(line["seconds"]["round"] for line in self.lines))

    def of_nodes(self, metric: str) -> dict[int, float]:
        """Return each node's last value of a metric; empty if nodes do not have it."""
        rows = [line["nodes"][metric] for line in self.lines if metric in line["nodes"]]
        return {int(node): value for node, value in rows[-1].items()} if rows else {}

    def partition(self) -> dict[str, Any] | None:
        """Return which node has which samples (see `forms.Partition`); None if it was not stored, or is damaged."""
        try:
            kept = read_form(self.path / PARTITION, Partition, self.path)
        except (OSError, ValueError):
            return None
        classes, counts = [on_one_line(name, 100) for name in kept["classes"]], kept["counts"]
        if not classes or not 0 < len(counts) <= MOST_ROWS or {len(row) for row in counts} != {len(classes)}:
            return None
        sizes = kept.get("sizes") or [sum(row) for row in counts]
        names = [on_one_line(name, 40) for name in kept.get("nodes") or map(str, range(len(counts)))]
        if not len(counts) == len(sizes) == len(names):
            return None
        noun, columns = on_one_line(kept.get("noun", "samples"), 20), on_one_line(kept.get("columns", "class"), 100)
        return {
            "classes": classes, "counts": counts, "sizes": sizes, "nodes": names, "noun": noun, "columns": columns,
        }  # fmt: skip

    def evaluation(self) -> dict[str, Any] | None:
        """Return the scores of the run's models (see `forms.Evaluation`); None if there are none, or if damaged."""
        try:
            kept = read_form(self.path / EVALUATION, Evaluation, self.path)
        except (OSError, ValueError):
            return None
        classes = [on_one_line(name, 100) for name in kept["classes"]]
        for one in kept["models"].values():
            if {len(one["classes"]), len(one["confusion"]), *map(len, one["confusion"])} != {len(classes)}:
                return None
        return {"classes": classes, "models": kept["models"]}


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds only, ordered by seed, with a name."""

    name: str
    runs: list[Run]


def read_run(path: Path) -> Run:
    """Read a run folder, also during the run.

    Raises InputError for a folder without a run, one of `fedkd distill`, and one whose files this version cannot read.
    """
    if not os.path.lexists(path / CONFIG):
        raise InputError(f"{path}: there is no run; its {CONFIG} is missing.")
    try:
        config = read_table(path / CONFIG, path)
    except InputError as error:
        raise InputError(f"{path}: its files cannot be read: {error}") from error
    try:
        if "distiller" in config:
            raise InputError(f"{path}: this is a distillation, not a federation; it has no rounds to compare.")
        lines, damage = read_lines(path / METRICS)
        summary = parse_json(read(path / SUMMARY, MOST_BYTES, path)) if os.path.lexists(path / SUMMARY) else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: its files cannot be read: {on_one_line(reason_of(error))}.") from error
    wrong = wrong_fields(RunConfig, config, "config.")
    wrong += wrong_fields(Summary, summary, "summary.") if summary is not None else []
    wrong += [damage] if damage is not None else []
    if wrong:
        versions = summary.get("versions") if isinstance(summary, dict) else None
        said = versions.get("fedkd", "nothing") if isinstance(versions, dict) else "nothing"
        raise InputError(
            f"{path}: {', '.join(wrong)}. This version of fedkd cannot read it (it says {on_one_line(str(said), 40)}): "
            "run it again."
        )
    rounds = [line["round"] for line in lines]
    early = summary is not None and isinstance(summary.get("stopped_early"), dict)
    due = summary.get("rounds") if summary is not None and early else config["rounds"]
    if summary is not None and summary["status"] == "completed" and len(rounds) - 1 != due:
        ends = f"ends with round {rounds[-1]} of {due}" if rounds else "has no round"
        raise InputError(f"{path}: completed, but its {METRICS} {ends}; lines were lost.")
    return Run(path, masked(config), lines, summary)


def left_out(path: Path) -> list[str]:
    """Return a line about each part of a run folder that is not read: a link out of it, or another form."""
    problems = []
    for name, form in ((PARTITION, Partition), (EVALUATION, Evaluation), (ORIGIN, OriginFile)):
        if os.path.lexists(path / name):
            try:
                read_form(path / name, form, path)
            except (OSError, ValueError) as error:
                problems.append(f"{path / name} is left out: {on_one_line(reason_of(error), 200)}.")
    for one in (path / "logs").rglob("*"):
        if leads_out(one, path):
            problems.append(f"{one} is left out: it is a link to a place outside of {path}.")
    return problems


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in folders, each a run or a folder of runs, by path; and the problems of other runs there.

    Raises InputError if no run can be read.
    """
    runs: list[Run] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            problems.append(f"{path}: there is no such folder.")
            continue
        folders, unread = _folders(path)
        problems += unread
        if not folders and not unread:
            problems.append(f"{path}: there is no run in it.")
        for folder in folders:
            try:
                run = read_run(folder)
            except InputError as error:
                problems.append(str(error))
                continue
            if (where := folder.resolve()) in seen:
                continue
            seen.add(where)
            if run.lines:
                runs.append(run)
                problems += left_out(folder)
            else:
                problems.append(f"{folder}: no round has ended ({run.status}).")
    if not runs:
        raise InputError("There is no run to show. " + " ".join(problems))
    return runs, problems


def _folders(path: Path) -> tuple[list[Path], list[str]]:
    """Return the run folders in a folder, including links to them; and a line about each unreadable folder."""
    unread: list[str] = []

    def on_error(error: OSError) -> None:
        unread.append(f"{error.filename}: cannot be read: {error.strerror}.")

    if os.path.isfile(path / CONFIG):  # Path.is_file raises an error for a folder without permissions
        return [path], unread
    found, seen = [], set()
    for home, within, names in os.walk(path, onerror=on_error, followlinks=True):
        if os.path.realpath(home) in seen:  # a link to a folder above it
            within.clear()
            continue
        seen.add(os.path.realpath(home))
        within.sort()
        if CONFIG in names:
            found.append(Path(home))
            within.clear()  # a link in a run folder may lead anywhere
    return sorted(found), unread


def completed(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Return the completed runs, and a line about each other run."""
    runs = list(runs)
    others = [run for run in runs if run.status != "completed"]
    problems = [
        f"{run.path}: {run.status} after round {run.reached} of {run.config['rounds']}; left out." for run in others
    ]
    return [run for run in runs if run.status == "completed"], problems


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the keys, except the strategy's, in which runs differ, each with its values: None if it is not set."""
    keys = sorted({key for run in runs for key in run.settings if not key.startswith("strategy.")})
    values = {key: _unique(run.settings.get(key) for run in runs) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def arms_of(runs: Sequence[Run]) -> tuple[list[Arm], list[str]]:
    """Sort runs into arms, in the order of the runs; also return a line about each run that exists twice.

    The name of an arm is its strategy, with the keys that distinguish it from the others.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(run)
    members = [group[0] for group in groups.values()]
    elsewhere = list(differing(members))
    arms, problems = [], []
    for first, group in zip(members, groups.values(), strict=True):
        by_seed: dict[int, Run] = {}
        for run in group:
            if run.seed in by_seed:
                problems.append(f"{run.path}: the same run as {by_seed[run.seed].path}; left out.")
            else:
                by_seed[run.seed] = run
        name = first.strategy
        same = [run for run in members if run.strategy == name]
        own = sorted({key for run in same for key in run.settings if key.startswith("strategy.")})
        own = [key for key in own if len(_unique(run.settings.get(key) for run in same)) > 1]
        parts = [f"{key.removeprefix('strategy.')} {shown(first.settings.get(key))}" for key in (*own, *elsewhere)]
        short = name.rsplit(":", 1)[-1]
        if len({m.strategy for m in members if m.strategy.rsplit(":", 1)[-1] == short}) > 1:
            short = name  # several files have classes with this name
        name = on_one_line(f"{short} ({', '.join(parts)})" if parts else short)
        arms.append(Arm(name, [by_seed[seed] for seed in sorted(by_seed)]))
    return arms, problems


def shared_metrics(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics that all arms have, the most informative first."""
    found = [{metric for run in arm.runs for metric in run.metrics()} for arm in arms]
    return in_order(set.intersection(*found) if found else set())


def in_order(metrics: Iterable[str]) -> list[str]:
    """Return metrics ordered: the most informative first, then the other main metrics of their tasks."""
    first = [f"{scope}/{name}" for name in MAIN for scope in ("personal", "global", "probe")]

    def place(name: str) -> tuple[int, bool, str]:
        return first.index(name) if name in first else len(first), not is_main(name), name

    return sorted(metrics, key=place)


def check_metric(option: str, metric: str, arms: Sequence[Arm]) -> None:
    """Raise InputError, which names the option, if no arm has a metric."""
    known = {name for arm in arms for run in arm.runs for name in run.metrics()}
    if metric not in known:
        raise unknown(option, metric, known)


def target_reached(run: Run, metric: str, target: float) -> tuple[int, float, float] | None:
    """Return round, megabytes and seconds at which a metric first reached a target, or None."""
    for i in run.measured(metric):
        value = run.lines[i]["metrics"][metric]
        if value <= target if lower_is_better(metric) else value >= target:
            return run.lines[i]["round"], run.megabytes[i], run.seconds[i]
    return None


def worst_decile(values: Iterable[float], metric: str) -> float:
    """Return the mean of the worst tenth of nodes' values of a metric, at least one node; NaN if any value is NaN."""
    ordered = sorted(values, reverse=lower_is_better(metric))
    worst = ordered[: max(1, math.ceil(len(ordered) / 10))]
    return sum(worst) / len(worst) if all(map(math.isfinite, ordered)) else math.nan


def changes_between(runs: Sequence[Run], *, data: bool = True) -> list[str]:
    """Return what has changed between runs that should be comparable, as texts that name two runs and each change.

    It compares what runs began with, which can differ even if the configs agree: images over all of them, partitions
    for each seed, files and versions over the seeds of an arm. `data`: whether images and partitions must be equal.
    """
    found: dict[str, None] = {}

    def compare(groups: Iterable[Sequence[Run]], parts: Sequence[str]) -> None:
        for group in groups:
            known = [run for run in group if run.origin]
            for run in known[1:]:
                before, now = ({part: one.origin.get(part) for part in parts} for one in (known[0], run))
                if "files" in parts:  # those of both: a worker of a sweep may have imported a file for another run
                    files = run.origin["files"]
                    before["files"] = {name: old for name, old in known[0].origin["files"].items() if name in files}
                if changed := differences(before, now):
                    found.setdefault(f"{known[0].path} and {run.path} differ: {'; '.join(changed)}")

    seeds: dict[int, list[Run]] = {}
    for run in runs:
        seeds.setdefault(run.seed, []).append(run)
    if data:
        compare([runs], ["images"])
        compare(seeds.values(), ["images", "partition"])
    compare([arm.runs for arm in arms_of(runs)[0]], ["files", "versions"])
    for run in runs:
        for change in run.origin.get("changes", []):
            found.setdefault(f"{run.path} went on after a change: {on_one_line(json.dumps(change), 200)}")
    return list(found)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True, default=str): value for value in values}.values())


def shown(value: Any) -> str:
    """Return the value of a config key as short text."""
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    if value is None:
        return "unset"
    return f"{value:g}" if isinstance(value, float) else on_one_line(str(value), 200)

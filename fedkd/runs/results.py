"""Runs as they are in their folders: reading them, sorting them into arms that differ in their seeds alone."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..config import flattened
from ..errors import InputError, on_one_line, unknown
from .metrics import lower_is_better
from .run_folder import CONFIG, METRICS, PARTITION, SUMMARY, whole_lines

NO_RESULT = ("engine.", "checkpoint.", "trackers", "data.root", "data.download")  # keys that change none


class _Line(BaseModel):
    """What is read of a line of metrics.jsonl."""

    round: int
    cohort: list[int]
    metrics: dict[str, float]
    nodes: dict[str, dict[str, float]]
    bytes: dict[str, dict[str, int]]
    failures: list[dict[str, Any]]
    log: dict[str, Any]
    seconds: dict[str, float]


class _Strategy(BaseModel):
    """What is read of a config's strategy by its name."""

    name: str


class _Config(BaseModel):
    """What is read of a config.toml by its name."""

    seed: int
    rounds: int
    strategy: _Strategy
    data: dict[str, Any]


class _Summary(BaseModel):
    """What is read of a summary.json by its name."""

    status: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A run's folder, read: its config as plain tables, its rounds, and its summary (None where it never ended)."""

    path: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    summary: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return int(self.config["seed"])

    @property
    def status(self) -> str:
        """Return `completed`, `failed`, `interrupted`, or `unfinished` for a run that goes on or was cut off."""
        return "unfinished" if self.summary is None else str(self.summary["status"])

    @property
    def reached(self) -> int:
        """Return the last round that has ended."""
        return int(self.lines[-1]["round"]) if self.lines else 0

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return all keys of the config that can change a result, dotted, but the seed."""
        return {key: value for key, value in flattened(self.config).items() if not key.startswith(("seed", *NO_RESULT))}

    @property
    def arm(self) -> str:
        """Return the settings as text: the same for runs that differ in their seeds alone."""
        return json.dumps(self.settings, sort_keys=True, default=str)

    def metrics(self) -> list[str]:
        """Return the names of all metrics that some round has."""
        return sorted({name for line in self.lines for name in line["metrics"]})

    def measured(self, metric: str) -> list[int]:
        """Return the positions of the lines that have a metric."""
        return [i for i, line in enumerate(self.lines) if metric in line["metrics"]]

    @cached_property
    def megabytes(self) -> list[float]:
        """Return the method's traffic up to and with each line, both ways, in 10^6 bytes."""
        return list(accumulate(sum(sum(way.values()) for way in line["bytes"].values()) / 1e6 for line in self.lines))

    @cached_property
    def seconds(self) -> list[float]:
        """Return the seconds of rounds up to and with each line, without evaluation."""
        return list(accumulate(line["seconds"]["round"] for line in self.lines))

    def of_nodes(self, metric: str) -> dict[int, float]:
        """Return each node's value of a metric when it was last measured; empty where nodes have none."""
        rows = [line["nodes"][metric] for line in self.lines if metric in line["nodes"]]
        return {int(node): value for node, value in rows[-1].items()} if rows else {}

    def partition(self) -> dict[str, Any] | None:
        """Return who held what: `classes`, and `counts`, nodes x classes; None where it was not kept."""
        try:
            kept: dict[str, Any] = json.loads((self.path / PARTITION).read_text())
        except (OSError, ValueError):
            return None
        return kept


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone, by seed, under a name of their own."""

    name: str
    runs: list[Run]


def read_run(path: Path) -> Run:
    """Read a run's folder, also while the run goes on.

    Raises InputError for a folder without a run, one of `fedkd distill`, and one whose files this version cannot read.
    """
    if not os.path.isfile(path / CONFIG):  # Path.is_file raises where it may not look
        raise InputError(f"{path}: there is no run; its {CONFIG} is missing.")
    try:
        config = tomllib.loads((path / CONFIG).read_text())
        if "distiller" in config:
            raise InputError(f"{path}: that is a distillation, not a federation; it has no rounds to compare.")
        lines = whole_lines(path / METRICS)
        summary = json.loads((path / SUMMARY).read_text()) if (path / SUMMARY).is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: its files cannot be read: {on_one_line(str(error))}") from error
    wrong = [*_wrong(_Config, config, "config."), *_wrong(_Summary, summary, "summary.")]
    wrong += next((found for line in lines if (found := _wrong(_Line, line, ""))), [])
    if wrong:
        versions = summary.get("versions") if isinstance(summary, dict) else None
        said = versions.get("fedkd", "nothing") if isinstance(versions, dict) else "nothing"
        raise InputError(
            f"{path}: not a run of this version of fedkd (it says {said}): {', '.join(wrong)}; run it again."
        )
    rounds = [line["round"] for line in lines]
    if rounds != list(range(len(rounds))):
        number = next(i for i, found in enumerate(rounds) if found != i)
        raise InputError(f"{path}: {METRICS} has round {rounds[number]} in the place of round {number}.")
    if summary is not None and summary["status"] == "completed" and len(rounds) != config["rounds"] + 1:
        ends = f"ends with round {rounds[-1]} of {config['rounds']}" if rounds else "holds no round"
        raise InputError(f"{path}: completed, but its {METRICS} {ends}; lines were lost.")
    return Run(path, config, lines, summary)


def _wrong(form: type[BaseModel], found: Any, where: str) -> list[str]:
    """Return which parts of what was read are missing or of another type; none of a summary that is not there."""
    if found is None and form is _Summary:
        return []
    try:
        form.model_validate(found, strict=True)
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            key = where + ".".join(map(str, one["loc"]))
            wrong.append(f"without {key}" if one["type"] == "missing" else f"{key.strip('.')} is {one['input']!r:.60}")
        return wrong
    return []


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in folders, each a run or a folder of runs, by path; and what is wrong with others there.

    Raises InputError where no run is left.
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
            else:
                problems.append(f"{folder}: no round has ended ({run.status}).")
    if not runs:
        raise InputError("There is no run to show. " + " ".join(problems))
    return runs, problems


def _folders(path: Path) -> tuple[list[Path], list[str]]:
    """Return the run folders in a folder, links to some included; and which folders cannot be read, and why."""
    unread: list[str] = []

    def on_error(error: OSError) -> None:
        unread.append(f"{error.filename}: cannot be read: {error.strerror}.")

    if os.path.isfile(path / CONFIG):  # Path.is_file raises where it may not look
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
    return sorted(found), unread


def completed(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that came to their end, and a line on each other one."""
    runs = list(runs)
    others = [run for run in runs if run.status != "completed"]
    problems = [
        f"{run.path}: {run.status} after round {run.reached} of {run.config['rounds']}; left out." for run in others
    ]
    return [run for run in runs if run.status == "completed"], problems


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the keys, but the strategy's, in which runs differ, each with its values: None where it is unset."""
    keys = sorted({key for run in runs for key in run.settings if not key.startswith("strategy.")})
    values = {key: _unique(run.settings.get(key) for run in runs) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def arms_of(runs: Sequence[Run]) -> tuple[list[Arm], list[str]]:
    """Sort runs into arms, in the order in which they come; and name runs that are there twice.

    An arm is named after its strategy, and what else distinguishes it from the others.
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
        name = first.settings["strategy.name"]
        same = [run for run in members if run.settings["strategy.name"] == name]
        own = sorted({key for run in same for key in run.settings if key.startswith("strategy.")})
        own = [key for key in own if len(_unique(run.settings.get(key) for run in same)) > 1]
        parts = [f"{key.removeprefix('strategy.')} {shown(first.settings.get(key))}" for key in (*own, *elsewhere)]
        short = name.rsplit(":", 1)[-1]
        if len({other for m in members if (other := m.settings["strategy.name"]).rsplit(":", 1)[-1] == short}) > 1:
            short = name  # classes of one name in several files
        arms.append(
            Arm(
                f"{short} ({', '.join(parts)})" if parts else short,
                [by_seed[seed] for seed in sorted(by_seed)],
            )
        )
    return arms, problems


def shared_metrics(arms: Sequence[Arm]) -> list[str]:
    """Return the metrics that all arms have, those first that say most."""
    found = [{metric for run in arm.runs for metric in run.metrics()} for arm in arms]
    return in_order(set.intersection(*found) if found else set())


def in_order(metrics: Iterable[str]) -> list[str]:
    """Return metrics, those first that say most, then the other accuracies."""
    first = ("personal/accuracy", "global/accuracy", "probe/accuracy")

    def place(name: str) -> tuple[int, bool, str]:
        return first.index(name) if name in first else len(first), not name.endswith("/accuracy"), name

    return sorted(metrics, key=place)


def check_metric(metric: str, arms: Sequence[Arm]) -> None:
    """Raise InputError where no arm has a metric."""
    known = {name for arm in arms for run in arm.runs for name in run.metrics()}
    if metric not in known:
        raise unknown("--metric", metric, known)


def target_reached(run: Run, metric: str, target: float) -> tuple[int, float, float] | None:
    """Return round, megabytes and seconds at which a metric was first measured at a target or beyond it, if ever."""
    for i in run.measured(metric):
        value = run.lines[i]["metrics"][metric]
        if value <= target if lower_is_better(metric) else value >= target:
            return run.lines[i]["round"], run.megabytes[i], run.seconds[i]
    return None


def worst_decile(values: Iterable[float], metric: str) -> float:
    """Return the mean of the worst tenth of nodes' values of a metric, of one node at least; NaN where one is none."""
    ordered = sorted(values, reverse=lower_is_better(metric))
    worst = ordered[: max(1, math.ceil(len(ordered) / 10))]
    return sum(worst) / len(worst) if all(map(math.isfinite, ordered)) else math.nan


def other_data(runs: Sequence[Run]) -> tuple[Run, Run] | None:
    """Return two runs of one seed that trained on other images or another partition, if there are any.

    By the fingerprints in their summaries, also where configs agree.
    """
    first: dict[int, Run] = {}
    for run in runs:
        if run.summary is not None and "data" in run.summary:
            before = first.setdefault(run.seed, run)
            assert before.summary is not None
            if before.summary["data"] != run.summary["data"]:
                return before, run
    return None


def _unique(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True, default=str): value for value in values}.values())


def shown(value: Any) -> str:
    """Return a value of a config's key in few words."""
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    if value is None:
        return "unset"
    return f"{value:g}" if isinstance(value, float) else str(value)

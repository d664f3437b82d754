"""Tables whose runs are distillations of a set (`kind = "distill"`): their jobs, and what these give."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ..config import DistillConfig, parse_distill_config, read_table, to_table
from ..errors import InputError, RunError, described, on_one_line, reason_of
from ..masking import masked
from ..runs.distill import Distillation, distill, make_distiller, resume
from ..runs.forms import DistillLine, Summary, read_form, read_lines
from ..runs.origin import known_files, refuse_changes
from ..runs.progress import Progress
from ..runs.results import Run
from ..runs.run_folder import CONFIG, METRICS, SUMMARY, alone_in, is_unborn, make_folder
from ..runs.sweep import has_ended
from .tables import PublishedTable, Row, run_name


class Job(NamedTuple):
    """One distillation of a table."""

    name: str
    path: Path
    config: DistillConfig


def configs_of(table: PublishedTable, row: Row, *, quick: bool = False, seed: int = 0) -> dict[str, DistillConfig]:
    """Return the configs of a row's distillations, as `PublishedTable.settings_of`, with all options of the distiller.

    Raises InputError for a wrong key.
    """
    found = table.settings_of(row, quick=quick, seed=seed)
    parsed = {name: parse_distill_config(one, f"{table.title}, {name}") for name, one in found.items()}
    return {name: make_distiller(config)[1] for name, config in parsed.items()}


def jobs_of(table: PublishedTable, rows: Sequence[Row], seeds: int, out: Path, *, quick: bool = False) -> list[Job]:
    """Return all distillations of rows, the finished ones too. Raises InputError for a wrong key."""
    jobs: dict[str, Job] = {}
    for row in rows:
        for seed in range(seeds):
            for setting, config in configs_of(table, row, quick=quick, seed=seed).items():
                name = run_name(setting, seed)
                jobs[name] = Job(name, out / name, config)
    return list(jobs.values())


def is_finished(job: Job) -> bool:
    """Return whether a distillation exists and has ended. Raises InputError for a folder with another run."""
    return has_ended(job.path, job.config, read)


def finished(
    table: PublishedTable, row: Row, setting: str, seeds: Sequence[int], out: Path, *, quick: bool
) -> list[Run]:
    """Return the finished distillations of a setting, by seed. Raises InputError for one with another config."""
    found = []
    for seed in seeds:
        name = run_name(setting, seed)
        job = Job(name, out / name, configs_of(table, row, quick=quick, seed=seed)[setting])
        if is_finished(job):
            found.append(read(job.path))
    return found


def read(path: Path) -> Run:
    """Read the folder of a distillation, also during it, as a run whose rounds are the iterations.

    Raises InputError for files that are damaged or incomplete.
    """
    config = read_table(path / CONFIG, path)
    try:
        lines, damage = read_lines(path / METRICS, DistillLine)
        summary = read_form(path / SUMMARY, Summary, path) if os.path.lexists(path / SUMMARY) else None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: its files cannot be read: {on_one_line(reason_of(error), 200)}.") from error
    if damage is not None:
        raise InputError(f"{path}: {damage}.")
    reached = lines[-1]["iteration"] if lines else None
    if summary is not None and summary["status"] == "completed" and reached != config["iterations"]:
        ends = f"ends with iteration {reached} of {config['iterations']}" if lines else "has no iteration"
        raise InputError(f"{path}: completed, but its {METRICS} {ends}; lines were lost.")
    return Run(path, masked(config), [{**line, "round": line["iteration"]} for line in lines], summary)


def of_networks(run: Run, metric: str) -> list[float]:
    """Return a metric of each network that was trained on the images of the last measured iteration, as `read` gives.

    Raises InputError if it was not kept.
    """
    found: list[list[float]] = [line["networks"][metric] for line in run.lines if metric in line.get("networks", {})]
    if not found:
        raise InputError(f"{run.path}: {metric} of each network was not kept; run it again in a new folder.")
    return found[-1]


def check(jobs: Sequence[Job], *, accept_changes: bool = False) -> None:
    """Check each config as `fedkd distill` does, for one of its seeds, before anything runs.

    Distillations that exist must have begun with the same images, files and versions, unless `accept_changes`. Raises
    InputError, which names the job.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(json.dumps({**to_table(job.config), "seed": 0}, sort_keys=True), []).append(job)
    for same in groups.values():
        try:
            work = Distillation(same[0].config)
        except InputError as error:
            raise InputError(f"{same[0].name}: {error}") from error
        for job in same:
            if (job.path / CONFIG).is_file() and not accept_changes:
                refuse_changes(job.path, work.origin(known_files(job.path)))


def run_jobs(jobs: Sequence[Job], out: Path, stream: TextIO, *, accept_changes: bool = False) -> dict[str, str]:
    """Run distillations in the folder `out`, one after another, or continue them; return the error of each failed one.

    Finished ones are kept. Raises InputError as `check` does.
    """
    waiting = [job for job in jobs if not is_finished(job)]
    check(jobs, accept_changes=accept_changes)
    make_folder(out)
    failed: dict[str, str] = {}
    with alone_in(out):
        for number, job in enumerate(waiting, 1):
            with Progress(stream, "iteration") as progress:
                progress.line(f"{number}/{len(waiting)}  {job.name}")
                reason = _run(job, progress, accept_changes=accept_changes)
                if reason is not None:
                    progress.line(f"{job.name}: {reason}")
                    failed[job.name] = reason
    return failed


def _run(job: Job, progress: Progress, *, accept_changes: bool) -> str | None:
    """Run or continue one distillation; return the reason if it has failed."""

    def show(number: int, metrics: dict[str, float]) -> None:
        progress.advance(number, job.config.iterations, metrics)

    try:
        if (job.path / CONFIG).is_file():
            resume(job.path, show, accept_changes=accept_changes)
        else:
            if job.path.exists() and is_unborn(job.path):
                shutil.rmtree(job.path)
            distill(job.config, job.path, show)
    except (InputError, RunError) as error:
        return str(error)
    except Exception as error:  # an error in a distiller: shown as the failure of this run
        return described(error)
    return None

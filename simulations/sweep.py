"""The runs of a grid on Ray, several at a time: each in one worker, limited by cores, memory and GPUs."""

from __future__ import annotations

import logging
import os
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray

from fedkd.config import Config, NamedTable
from fedkd.errors import InputError, RunError, described
from fedkd.runs.progress import ManyRuns
from fedkd.runs.run import resume, run
from fedkd.runs.run_folder import CONFIG, METRICS, is_unborn, whole_lines
from fedkd.runs.sweep import Job

from .ray_cluster import refuse_lost, umask
from .ray_placement import connect, count_workers, disconnect, fit

_LOOK_SECONDS = 1.0  # time between two updates of the progress
_END_SECONDS = 60.0  # time for interrupted runs to write their checkpoints
_TRIES = 2  # a run whose process dies is started once more, with twice the memory


class Share(NamedTuple):
    """The resources of one run: CPUs (its threads), GPUs, bytes of memory."""

    cpus: float
    gpus: float
    memory: float


@dataclass
class _Running:
    job: Job
    share: Share
    tries: int


def run_jobs(
    jobs: Sequence[Job],
    view: ManyRuns,
    *,
    memory: float,
    gpus: float | None = None,
    at_once: int | None = None,
    accept_changes: bool = False,
) -> dict[str, str]:
    """Run jobs, or continue those that have a folder; return the error of each failed job, by name.

    `memory`: bytes reserved for a run; `gpus`: its share of GPUs, by default that of its engine's workers; `at_once`:
    the largest number of runs at a time, by default as many as fit. The engine does not change results, so each run
    uses the inline engine, or the vectorised one if its config names it, in a worker of its own. Raises InputError if
    not even one run fits.
    """
    if not jobs:
        return {}
    address = jobs[0].config.engine.options.get("address")
    started = not ray.is_initialized()
    if started:
        connect(address)
    try:
        machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
        waiting = deque(_Running(job, _share(job.config, gpus, memory, machines), 1) for job in jobs)
        # each job must fit; the largest share decides how many run at a time
        slots = [count_workers("auto", *one.share[:2], machines, len(jobs), one.share.memory) for one in waiting]
        return _run_all(waiting, view, machines, min([*slots, at_once or len(jobs)]), accept_changes)
    finally:
        if started:
            disconnect()


def _share(config: Config, gpus: float | None, memory: float, machines: list[dict[str, float]]) -> Share:
    options = config.engine.options
    if gpus is None:
        there = any(machine.get("GPU", 0) >= 1 for machine in machines) and options.get("device", "auto") != "cpu"
        gpus = float(options.get("gpus_per_worker", 0.0)) if config.engine.name == "ray" else float(there)
    return Share(float(options.get("threads", 1)), gpus, memory)


def _run_all(
    waiting: deque[_Running], view: ManyRuns, machines: list[dict[str, float]], slots: int, accept_changes: bool
) -> dict[str, str]:
    running: dict[Any, _Running] = {}
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                one = waiting.popleft()
                running[_start(one, accept_changes)] = one
                view.begin(one.job.name, one.job.config.rounds)
            refuse_lost()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_SECONDS)
            for one in running.values():
                _look(one.job, view)
            for ref in ready:
                one = running.pop(ref)
                reason, notices, died = _outcome(ref)
                for notice in notices:
                    view.line(f"{one.job.name}: {notice}")
                if died and one.tries < _TRIES:
                    waiting.append(_Running(one.job, _roomier(one.share, machines), one.tries + 1))
                    view.end(one.job.name, f"{reason}; it will continue with more memory", finished=False)
                    continue
                if reason is not None:
                    failed[one.job.name] = reason
                view.end(one.job.name, reason, finished=True)
    except KeyboardInterrupt:
        for ref in running:
            ray.cancel(ref)  # works like Ctrl-C: the run writes a checkpoint of its last finished round
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_END_SECONDS)
        raise
    return failed


def _start(one: _Running, accept_changes: bool) -> Any:
    cpus, gpus, memory = one.share
    # a process that has used a GPU keeps GPU memory until it ends, so only other processes are used again
    calls = 1 if gpus else 0
    task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, memory=int(memory), max_retries=0, max_calls=calls)(_run_job)
    return task.remote(_inline(one), str(one.job.path.resolve()), accept_changes, umask())


def _roomier(share: Share, machines: list[dict[str, float]]) -> Share:
    """Return the share with twice the memory, or as much as the largest machine that fits the rest of the share has."""
    most = max(machine.get("memory", 0) for machine in machines if fit(machine, *share))
    return share._replace(memory=min(2 * share.memory, most))


def _inline(one: _Running) -> Config:
    engine, own = one.job.config.engine, {"threads": max(1, int(one.share.cpus))}
    options = {**own, "device": "cuda" if one.share.gpus else "cpu"}
    if engine.name == "vectorised":
        options = {**engine.options, **options}
    name = "vectorised" if engine.name == "vectorised" else "inline"
    return one.job.config.model_copy(update={"engine": NamedTable(name=name, **options)})


def _outcome(ref: Any) -> tuple[str | None, list[str], bool]:
    """Return the reason if a run has failed, its messages, and whether its process died."""
    try:
        reason, notices = ray.get(ref)
        return reason, notices, False
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        refuse_lost(after_error=True)
        return f"its process died: {type(error).__name__}", [], True
    except ray.exceptions.RayError as error:
        refuse_lost(after_error=True)
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}", [], False


def _look(job: Job, view: ManyRuns) -> None:
    """Update the view with the progress of a run, which is read from its folder."""
    try:
        lines = whole_lines(job.path / METRICS)
    except (OSError, ValueError):
        return
    if lines:
        shown: dict[str, float] = next((line["metrics"] for line in reversed(lines) if line["metrics"]), {})
        view.update(job.name, lines[-1]["round"], shown)


def _run_job(config: Config, folder: str, accept_changes: bool, mask: int) -> tuple[str | None, list[str]]:
    """Start or continue one run in this worker; return the reason if it has failed, and its messages."""
    os.umask(mask)  # Ray's processes have one of their own
    logging.getLogger("flwr").setLevel(logging.ERROR)
    path, notices = Path(folder), _Notices()
    logging.getLogger("fedkd").addHandler(notices)
    try:
        if (path / CONFIG).is_file():
            resume(path, on_event=notices.texts.append, engine=config.engine, accept_changes=accept_changes)
        else:
            if path.exists() and is_unborn(path):
                shutil.rmtree(path)
            run(config, path, on_event=notices.texts.append)
    except (InputError, RunError) as error:
        return str(error), notices.texts
    except Exception as error:  # an error in a strategy: shown as the failure of this run
        return described(error), notices.texts
    finally:
        logging.getLogger("fedkd").removeHandler(notices)
    return None, notices.texts


class _Notices(logging.Handler):
    """Keeps warnings, such as of a failing tracker, so that the sweep can show them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Store a warning."""
        self.texts.append(record.getMessage())

"""The leaderboard: tunes each method with the same number of trials, runs the winners, and writes docs/leaderboard.md.

The page begins with the protocol; `leaderboard_methods.py` has its numbers.

    python benchmarks/leaderboard.py                                # runs what is missing, board after board
    python benchmarks/leaderboard.py --only mnist/0.1 --methods fedavg,local,scaffold
    python benchmarks/leaderboard.py --list                         # what is there, what is missing, and its hours
    python benchmarks/leaderboard.py --write                        # runs nothing, and writes what has been run

It can be stopped at any moment, also by `kill -9`; a second call goes on, and continues the runs that were in progress.
A run that has failed is not repeated: remove its folder for that. A method whose results are in docs/leaderboard/ is
not run again: remove them there, and its folder. The sets are read from $FEDKD_DATA or data/.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import leaderboard_methods as rules
from leaderboard_methods import Settings
from leaderboard_page import WORST, Board, Row, boards, file_of, page

from fedkd.core.setup import make_setup
from fedkd.data.federated_data import FederatedData
from fedkd.data.federation import federate
from fedkd.errors import InputError
from fedkd.files import as_json
from fedkd.reports.compare import final_value
from fedkd.runs.progress import ManyRuns
from fedkd.runs.results import Run, read_run, worst_decile
from fedkd.runs.run_folder import SUMMARY, alone_in, make_folder
from fedkd.runs.sweep import Job, plan_of
from fedkd.simulations.sweep import run_jobs

Rows = dict[Board, dict[str, Row]]


class Ended(NamedTuple):
    """What a job has left: a run, and the error if it has failed."""

    run: Run
    error: str | None


def _name(board: Board) -> str:
    return f"{board[0]}/{board[1]:g}"


def _home(board: Board, name: str, out: Path) -> Path:
    return out / _name(board).replace("/", "-") / name


def trial_jobs(board: Board, name: str, out: Path) -> list[Job]:
    """Return the trials of a method on a board."""
    home = _home(board, name, out)
    return [
        Job(f"{_name(board)} {name} trial {place}", home / f"trial-{place}",
            rules.config_of(*board, name, settings, rules.SEARCH_SEED, held_out=True))
        for place, settings in enumerate(rules.trials(rules.METHODS[name]))
    ]  # fmt: skip


def seed_jobs(board: Board, name: str, winner: int, out: Path) -> list[Job]:
    """Return the runs of a method's winner, a place in its trials."""
    home = _home(board, name, out)
    settings = rules.trials(rules.METHODS[name])[winner]
    return [
        Job(f"{_name(board)} {name} seed {seed}", home / f"winner-{winner}-seed-{seed}",
            rules.config_of(*board, name, settings, seed, held_out=False))
        for seed in rules.SEEDS
    ]  # fmt: skip


def ended(jobs: Sequence[Job]) -> dict[str, Ended]:
    """Return what the jobs that have ended have left, by name. Raises InputError for a folder with another config."""
    plan_of(jobs)
    found = {}
    for job in jobs:
        if not (job.path / SUMMARY).is_file():
            continue
        run = read_run(job.path)
        if run.status in ("completed", "failed"):
            error = str((run.summary or {}).get("error")) if run.status == "failed" else None
            found[job.name] = Ended(run, error)
    return found


def winner_of(name: str, there: Sequence[Ended]) -> int | None:
    """Return the place of the best trial; the one with the smaller learning rate of equal ones; None if all failed."""
    values = [_value(rules.METHODS[name].result, one) for one in there]
    best = max((value for value in values if not math.isnan(value)), default=None)
    return None if best is None else values.index(best)


def _value(metric: str, one: Ended) -> float:
    return final_value(one.run, metric) if one.error is None and one.run.measured(metric) else math.nan


def row_of(board: Board, name: str, out: Path) -> Row | None:
    """Return what the page needs of a method on a board; None if a trial or a run is missing."""
    jobs = trial_jobs(board, name, out)
    there = ended(jobs)
    if len(there) < len(jobs):
        return None
    of_trials = [there[job.name] for job in jobs]
    winner = winner_of(name, of_trials)
    row: Row = {"protocol": protocol(board, name), "made": made(_day(of_trials[-1]))}
    row["trials"] = [
        {"settings": settings, "value": _value(rules.METHODS[name].result, one)} | _reason(one)
        for settings, one in zip(rules.trials(rules.METHODS[name]), of_trials, strict=True)
    ]
    if winner is None:
        return row | {"reason": f"all {len(jobs)} trials failed: {of_trials[0].error}"}
    jobs = seed_jobs(board, name, winner, out)
    there = ended(jobs)
    if len(there) < len(jobs):
        return None
    return row | {"winner": winner, "runs": [_result(there[job.name]) for job in jobs]}


def _reason(one: Ended) -> dict[str, str]:
    return {} if one.error is None else {"reason": one.error}


def _result(one: Ended) -> dict[str, Any]:
    run = one.run
    result: dict[str, Any] = {"seed": run.seed} | _reason(one)
    if one.error is None:
        result |= {key: final_value(run, key) for key in (rules.GLOBAL, rules.PERSONAL) if run.measured(key)}
        if nodes := run.of_nodes(rules.PERSONAL):
            result[WORST] = worst_decile(nodes.values(), rules.PERSONAL)
        result |= {"megabytes": run.megabytes[-1], "seconds": run.seconds[-1]}
    return result


def protocol(board: Board, name: str) -> str:
    """Return a hash of all that is asked of a method on a board: results of another protocol are not shown."""
    asked = [rules.table_of(*board, name, settings) for settings in rules.trials(rules.METHODS[name])]
    text = json.dumps(
        [asked, rules.METHODS[name].result, rules.SEARCH_SEED, rules.HELD_OUT, rules.SEEDS], sort_keys=True
    )
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _day(one: Ended) -> datetime.date:
    return datetime.date.fromtimestamp((one.run.path / SUMMARY).stat().st_mtime)


def made(day: datetime.date) -> str:
    """Return a day, the commit now, and the machine."""
    changed = _git("status", "--porcelain", "fedkd", "strategies", "simulations", "configs")
    commit = _git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    return f"{day} at commit {commit}, {os.cpu_count()} cores ({platform.machine()})"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=rules.HOME, capture_output=True, text=True, check=True).stdout.strip()


def read_rows(docs: Path) -> Rows:
    """Return the kept results, of this protocol only."""
    found: Rows = {}
    for board in boards():
        path = docs / "leaderboard" / file_of(board)
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            found[board] = {name: row for name, row in kept.items() if _is_current(board, name, row)}
    return found


def _is_current(board: Board, name: str, row: Row) -> bool:
    return name in rules.METHODS and row["protocol"] == protocol(board, name)


def keep(board: Board, new: Mapping[str, Row], docs: Path) -> None:
    """Add results of a board to its file, and write the page."""
    rows = read_rows(docs)
    here = rows.setdefault(board, {})
    # what is there stays as it was made; a method that could not run may have been run now, or have another reason
    here |= {
        name: row
        for name, row in new.items()
        if name not in here or here[name].get("reason") not in (None, row.get("reason"))
    }
    if here:
        (docs / "leaderboard").mkdir(exist_ok=True)
        path = docs / "leaderboard" / file_of(board)
        partial = path.with_suffix(".partial")
        partial.write_bytes(as_json(dict(sorted(here.items())), indent=1))
        partial.replace(path)  # a kill leaves the old file or the new one
    (docs / "leaderboard.md").write_text(page(rows), encoding="utf-8")


def refusals(board: Board, names: Iterable[str]) -> dict[str, str]:
    """Return why methods cannot run on a board, of those that cannot."""
    found: dict[str, str] = {}
    data: FederatedData | None = None
    for name in names:
        try:
            for settings in _distinct(rules.trials(rules.METHODS[name])):
                config = rules.config_of(*board, name, settings, rules.SEARCH_SEED, held_out=True)
                data = data or federate(config.data, config.seed)
                make_setup(config, data).check()
        except InputError as error:
            if data is None:
                raise  # the set is missing: this is no reason of the method
            found[name] = str(error)
    return found


def _distinct(settings: Iterable[Settings]) -> list[Settings]:
    """Return one of the settings for each combination of knobs: the learning rate is never refused."""
    return list({json.dumps(one | {"lr": 0}): one for one in settings}.values())


def play(board: Board, names: Sequence[str], out: Path, docs: Path) -> dict[str, str]:
    """Run what is missing of methods on a board; return the errors of runs that could not even begin."""
    kept = read_rows(docs).get(board, {})
    left = [name for name in names if "runs" not in kept.get(name, {})]
    refused = refusals(board, left)
    keep(board, {name: {"protocol": protocol(board, name), "made": made(datetime.date.today()), "reason": why}
                 for name, why in refused.items()}, docs)  # fmt: skip
    left = sorted((name for name in left if name not in refused), key=lambda name: -rules.METHODS[name].cost)
    failed = _run_missing([job for name in left for job in trial_jobs(board, name, out)])
    winners = []
    for name in left:
        jobs = trial_jobs(board, name, out)
        there = ended(jobs)
        if len(there) == len(jobs) and (winner := winner_of(name, list(there.values()))) is not None:
            winners += seed_jobs(board, name, winner, out)
    failed |= _run_missing(winners)
    write(board, left, out, docs)
    return failed


def _run_missing(jobs: Sequence[Job]) -> dict[str, str]:
    """Run jobs that have not ended; return the errors of those that have left no result."""
    there = ended(jobs)
    missing = [job for job in jobs if job.name not in there]
    with ManyRuns(sys.stderr, len(missing)) as view:
        failed = run_jobs(missing, view, memory=2 * 2**30)
    there = ended(missing)
    return {name: reason for name, reason in failed.items() if name not in there}


def write(board: Board, names: Iterable[str], out: Path, docs: Path) -> None:
    """Keep the results of methods that are complete, and write the page."""
    found = {name: row_of(board, name, out) for name in names}
    keep(board, {name: row for name, row in found.items() if row is not None}, docs)


def show(chosen: Sequence[Board], names: Sequence[str], out: Path, docs: Path) -> None:
    """Print for each board how many runs are there, and the hours for those that are missing."""
    rows, all_hours = read_rows(docs), 0.0
    for board in chosen:
        count, hours, missing = 0, 0.0, []
        for name in names:
            each = len(rules.RATES) + len(rules.SEEDS)
            there = each if name in rows.get(board, {}) else _count(board, name, out)
            count += there
            hours += rules.core_hours(board[0], name, each - there) / (os.cpu_count() or 1)
            missing += [] if there == each else [name]
        all_hours += hours
        said = f"{count} of {len(names) * (len(rules.RATES) + len(rules.SEEDS))} runs, {hours:.1f} hours left"
        print(f"{_name(board):18} {said:40} missing: {', '.join(missing) or 'nothing'}")
    print(f"{all_hours:.1f} hours left on {os.cpu_count()} cores (an estimate from single short runs)")


def _count(board: Board, name: str, out: Path) -> int:
    if not _home(board, name, out).is_dir():
        return 0
    jobs = trial_jobs(board, name, out)
    there = ended(jobs)
    if len(there) < len(jobs) or (winner := winner_of(name, list(there.values()))) is None:
        return len(there)
    return len(there) + len(ended(seed_jobs(board, name, winner, out)))


def main() -> None:
    """Run, list or write what was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="SET/ALPHA,...", help="boards, such as mnist/0.1; by default all")
    parser.add_argument("--methods", default="", metavar="NAME,...", help="methods; by default all")
    parser.add_argument("--list", action="store_true", help="run nothing; show what is there and what is missing")
    parser.add_argument("--write", action="store_true", help="run nothing; write what has been run")
    parser.add_argument("--out", type=Path, default=Path("runs/leaderboard"), help="the folder of the runs")
    parser.add_argument(
        "--docs", type=Path, default=rules.HOME / "docs", help="where the page and the results are written"
    )
    arguments = parser.parse_args()
    by_name = {_name(board): board for board in boards()}
    wanted = arguments.only.split(",") if arguments.only else list(by_name)
    names = arguments.methods.split(",") if arguments.methods else list(rules.METHODS)
    for given, valid in ((wanted, by_name), (names, rules.METHODS)):
        if unknown := [one for one in given if one not in valid]:
            parser.error(f"unknown: {', '.join(unknown)}; valid: {', '.join(valid)}")
    chosen = [by_name[name] for name in wanted]
    if arguments.list:
        show(chosen, names, arguments.out, arguments.docs)
        return
    make_folder(arguments.out)
    failed: dict[str, str] = {}
    with alone_in(arguments.out):
        for board in chosen:
            if arguments.write:
                write(board, names, arguments.out, arguments.docs)
            else:
                failed |= play(board, names, arguments.out, arguments.docs)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

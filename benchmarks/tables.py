"""Tables of measured numbers: the runs that they need, and their place in a page. `method_tables.py` lists them."""

from __future__ import annotations

import argparse
import datetime
import math
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from fedkd.errors import InputError
from fedkd.reports.compare import best_value, final_value
from fedkd.reports.estimates import LEAST_SEEDS, estimate
from fedkd.runs.progress import ManyRuns
from fedkd.runs.results import Run, read_run
from fedkd.runs.run_folder import SUMMARY, alone_in, make_folder
from fedkd.runs.sweep import Job, Plan, check, plan, seeds_of
from fedkd.simulations.sweep import run_jobs

HOME = Path(__file__).resolve().parents[1]
WIDTH = 124  # of the lines of a page
BASE = "its base"  # as `Column.minus`: each arm is compared with its own `base`


@dataclass(frozen=True)
class Arm:
    """A row of a table: the overrides of the table's config, and the metric that columns without one read."""

    label: str
    overrides: tuple[str, ...] = ()
    metric: str = ""
    base: str = ""  # the label of the arm that a column with `minus = BASE` subtracts


@dataclass(frozen=True)
class Column:
    """A column of a table: how a number is read of a run, by default a fraction of `metric` as percent."""

    title: str
    read: Callable[[Run, str], float]
    metric: str = ""  # by default the arm's
    scale: float = 100.0
    minus: str = ""  # the label of an arm: the column shows differences to it on the same seeds, and how many are gains


@dataclass(frozen=True)
class Table:
    """A table of a page in docs/methods."""

    name: str
    page: str
    about: str  # what its numbers are, for a reader who sees the table only
    config: str  # a file in configs/
    arms: tuple[Arm, ...]
    columns: tuple[Column, ...]
    minutes: float  # of one core for all its runs, from the processor time of short runs where not said otherwise
    seeds: str = "0..2"
    overrides: tuple[str, ...] = ()  # of all arms


def final(run: Run, metric: str) -> float:
    """Return the last measured value of a metric, NaN if there is none."""
    return final_value(run, metric) if run.measured(metric) else math.nan


def best(run: Run, metric: str) -> float:
    """Return the best measured value of a metric, NaN if there is none."""
    return best_value(run, metric)


def mean(run: Run, metric: str) -> float:
    """Return the mean of a metric over the measured rounds from round 1 on, NaN if there is none."""
    values = [run.lines[i]["metrics"][metric] for i in run.measured(metric) if i > 0]
    return fmean(values) if values else math.nan


def at(number: int) -> Callable[[Run, str], float]:
    """Return a function that reads a metric in a round; NaN if it was not measured."""
    return lambda run, metric: float(run.lines[number]["metrics"].get(metric, math.nan))


def of_node(number: int) -> Callable[[Run, str], float]:
    """Return a function that reads a node's last value of a metric."""
    return lambda run, metric: run.of_nodes(metric).get(number, math.nan)


def logged(run: Run, key: str) -> float:
    """Return a number of the last round's log, NaN if the strategy does not log it."""
    return float(run.lines[-1]["log"].get(key, math.nan))


def megabytes(run: Run, _: str) -> float:
    """Return the traffic of a run in both directions."""
    return run.megabytes[-1]


def grids(table: Table, out: Path) -> dict[str, Plan]:
    """Return the runs of each arm, by its label. Arms with the same config and overrides have the same runs."""
    found = {}
    for arm in table.arms:
        overrides = (*table.overrides, *arm.overrides)
        home = out / table.config.removesuffix(".toml").replace("/", "-") / (_slug(" ".join(overrides)) or "config")
        grid = plan([HOME / "configs" / table.config], overrides, [], table.seeds, home)
        found[arm.label] = replace(grid, jobs=_named(grid.jobs), done=_named(grid.done))
    return found


def _named(jobs: Sequence[Job]) -> list[Job]:
    return [replace(job, name=f"{job.path.parent.name},{job.name}") for job in jobs]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text.replace("strategy", "")).strip("-")


def merged(found: dict[str, Plan]) -> Plan:
    """Return the runs of all arms as one plan, each run once."""
    jobs = {job.name: job for grid in found.values() for job in grid.jobs}
    done = {job.name: job for grid in found.values() for job in grid.done}
    return Plan(list(jobs.values()), list(done.values()), [], None)


def rows(table: Table, found: dict[str, Plan]) -> list[str]:
    """Return the lines of a table, of the runs that have ended."""
    runs = {label: {job.config.seed: read_run(job.path) for job in grid.done} for label, grid in found.items()}
    lines = [_line("", [column.title for column in table.columns]), "|---" * (len(table.columns) + 1) + "|"]
    lines += [_line(arm.label, [cell(table, column, arm, runs) for column in table.columns]) for arm in table.arms]
    return lines


def _line(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


def cell(table: Table, column: Column, arm: Arm, runs: dict[str, dict[int, Run]]) -> str:
    """Return a mean over the seeds that have been run, with a deviation if there are enough of them."""
    read = partial(_value, column, arm)
    values = {seed: read(run) for seed, run in runs[arm.label].items()}
    if column.minus:
        other = arm.base if column.minus == BASE else column.minus
        if other in ("", arm.label):
            return "–"
        values = {seed: value - read(runs[other][seed]) for seed, value in values.items() if seed in runs[other]}
    if not values:
        return "not run"
    if any(map(math.isnan, values.values())):
        return "–"
    found = estimate(list(values.values()))
    sign, most = ("+" if column.minus else ""), len(seeds_of(table.seeds))
    text = f"{found.mean:{sign}.1f}" + (f" ± {found.deviation:.1f}" if found.seeds >= LEAST_SEEDS else "")
    notes = [f"{sum(value > 0 for value in values.values())} of {found.seeds}"] if column.minus else []
    notes += [f"{found.seeds} of {most} seeds"] if found.seeds < most else []
    return f"{text} ({'; '.join(notes)})" if notes else text


def _value(column: Column, arm: Arm, run: Run) -> float:
    return column.scale * column.read(run, column.metric or arm.metric)


def section(table: Table, found: dict[str, Plan]) -> str:
    """Return what stands between a table's two marks: the table, and what made it."""
    grid = merged(found)
    count = len(grid.jobs) + len(grid.done)
    said = (
        f"`python benchmarks/method_tables.py {table.name}`, [{table.config}](../../configs/{table.config}): "
        f"{table.about}; mean ± standard deviation over seeds {table.seeds.replace('..', ' to ')}."
    )
    if any(column.minus for column in table.columns):
        said += " Differences are paired by seed, with the number of seeds that gain."
    if grid.done:
        said += f" {_machines(grid.done)}."
    if grid.jobs:
        said += (
            f" **{len(grid.jobs)} of {count} runs are not run**; "
            f"they take about {_left(table, grid):.0f} min of one core."
        )
    return "\n".join(["", *rows(table, found), "", *textwrap.wrap(said, WIDTH, break_on_hyphens=False), ""])


def _left(table: Table, grid: Plan) -> float:
    return table.minutes * len(grid.jobs) / (len(grid.jobs) + len(grid.done))


def _machines(done: Sequence[Job]) -> str:
    """Return the machines and the dates of runs."""
    machines, dates = set(), set()
    for job in done:
        summary = read_run(job.path).summary or {}
        hardware = summary["hardware"]
        gpus = ", ".join(hardware["gpus"]) or "no GPU"
        machines.add(f"{hardware['cpus']} cores ({hardware['machine']}, {gpus}), one per run")
        dates.add(datetime.date.fromtimestamp((job.path / SUMMARY).stat().st_mtime))
    days = [str(min(dates))] + ([str(max(dates))] if len(dates) > 1 else [])
    return f"{'; '.join(sorted(machines))}; {' to '.join(days)}"


def write(table: Table, out: Path, docs: Path) -> None:
    """Write a table into its page, between `<!-- table: NAME -->` and `<!-- end -->`."""
    page = docs / table.page
    text, times = re.subn(
        rf"(<!-- table: {re.escape(table.name)} -->\n).*?(<!-- end -->)",
        lambda marks: marks[1] + section(table, grids(table, out)) + "\n" + marks[2],
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if times != 1:
        raise InputError(f"{page}: has the marks of the table {table.name} {times} times; write them once.")
    page.write_text(text, encoding="utf-8")


def show(tables: Sequence[Table], out: Path, *, commands: bool) -> None:
    """Print what each table needs, and the commands of its runs."""
    for table in tables:
        grid = merged(grids(table, out))
        count = len(grid.jobs) + len(grid.done)
        left = f"{_left(table, grid):.0f} of {table.minutes:g} minutes left"
        print(f"{table.name:22} {table.page:14} {len(grid.done):3} of {count:3} runs, {left:28} {table.about}")
        for arm in table.arms if commands else ():
            sets = "".join(f" --set '{override}'" for override in (*table.overrides, *arm.overrides))
            print(f"    {arm.label}:\n        fedkd sweep configs/{table.config} --seeds {table.seeds}{sets}")


def main(tables: Sequence[Table], about: str | None) -> None:
    """Run the missing runs of the chosen tables and write each into its page; a second call continues the first."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="tables; by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/method-tables"), help="the folder of the runs")
    parser.add_argument("--docs", type=Path, default=HOME / "docs" / "methods", help="the folder of the pages")
    parser.add_argument("--list", action="store_true", help="run nothing; show the tables")
    parser.add_argument("--write", action="store_true", help="run nothing; write the tables of the runs that are there")
    arguments = parser.parse_args()
    by_name = {table.name: table for table in tables}
    if unknown := [name for name in arguments.names if name not in by_name]:
        parser.error(f"no table is called {', '.join(unknown)}; valid: {', '.join(by_name)}")
    chosen = [by_name[name] for name in arguments.names or by_name]
    if arguments.list:
        show(chosen, arguments.out, commands=bool(arguments.names))
        return
    failed: dict[str, str] = {}
    for table in chosen:
        grid = merged(grids(table, arguments.out))
        if grid.jobs and not arguments.write:
            check(grid)
            make_folder(arguments.out)
            with alone_in(arguments.out), ManyRuns(sys.stderr, len(grid.jobs)) as view:
                failed |= run_jobs(grid.jobs, view, memory=2 * 2**30)
        write(table, arguments.out, arguments.docs)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)

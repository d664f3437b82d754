"""Rows whose runs start from the best model of another row's run: which runs come first, and the models' files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..exports.formats import write_model
from ..exports.of_run import model_of_run
from ..runs.sweep import Plan
from .results import jobs_of
from .tables import PublishedTable, Row, run_name, start_file


def stages(table: PublishedTable, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows that run first, with those from which others start, and the rows that start from these."""
    sources = [table.source_of(row) for row in rows]
    firsts = {row.name for row in sources if row.start is None} | {row.start.row for row in sources if row.start}
    later = {row.name for row in sources if row.start is not None}
    return [row for row in table.rows if row.name in firsts], [row for row in table.rows if row.name in later]


def started_jobs(
    table: PublishedTable, rows: Sequence[Row], seeds: int, out: Path, *, quick: bool = False
) -> tuple[Plan, dict[str, str]]:
    """Return the runs of rows with `start`, and why others cannot start, by name; write the models' files, once.

    Raises InputError for a folder with another run.
    """
    plan = jobs_of(table, rows, seeds, out, quick=quick)
    reasons: dict[str, str] = {}
    for row in rows:
        assert row.start is not None
        first = table.row_called(row.start.row)
        finished = {job.name for job in jobs_of(table, [first], seeds, out, quick=quick).done}
        for seed in range(seeds):
            start, file = run_name(first.name, seed), start_file(out, row.start, seed)
            reason = _write(out / start, file) if start in finished else "has not finished"
            if reason is not None:
                names = [run_name(setting, seed) for setting in table.configs_of(row, quick=quick, seed=seed)]
                reasons |= dict.fromkeys(names, f"it starts from the run {start}, which {reason}")
    ready = replace(plan, jobs=[job for job in plan.jobs if job.name not in reasons])
    return ready, {job.name: reasons[job.name] for job in plan.jobs if job.name in reasons}


def _write(run: Path, file: Path) -> str | None:
    """Write the best model of a run to a file, unless it is there; return why it has none."""
    if file.exists():
        return None
    try:
        write_model(model_of_run(run, which="best"), file)
    except InputError as error:
        return f"has no model to start from: {error}"
    return None

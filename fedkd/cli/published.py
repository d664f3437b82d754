"""`fedkd reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, RunError
from ..files import as_json, write_output
from .common import AcceptChanges, app, exit_codes, say
from .tables import print_comparison

_MEMORY = 1.5 * 2**30  # bytes of a run


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="A table: see --list; or a file table.toml of one's own.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the tables.")] = False,
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Rows, methods or cells, such as 'FedGen*'; several times."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="How many seeds; by default the table's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short trial of all rows, which is not judged.")] = False,
    out: Annotated[Path | None, typer.Option(help="The folder of the runs; by default runs/published-<name>.")] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="The most runs at a time; by default as many as fit.")
    ] = None,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run a published table in its authors' settings, and print its figures beside ours.

    Repeat the command to continue: what has ended is kept.
    """
    with exit_codes("repeat the command to continue"):
        from ..published import chain, distillations, results, tables
        from ..registry import installed
        from ..runs.progress import ManyRuns
        from ..runs.run_folder import alone_in, make_folder
        from ..runs.sweep import check

        if show:
            for one in tables.names():
                table = tables.read(one)
                gpu = ", for a GPU" if table.machine == "gpu" else ""
                say(f"{one}: {table.title}, {len(table.rows)} rows x {table.seeds} seeds{gpu}. {table.paper}")
            return
        if name is None:
            raise InputError("Name a table, or --list them.")
        with installed("fedkd reproduce"):
            from ..simulations.sweep import run_jobs

        table = tables.read(name)
        label = Path(name).resolve().parent.name if name.endswith(".toml") else name
        folder = out or Path("runs") / f"published-{label}{'-quick' if quick else ''}"
        chosen, wanted = table.chosen(rows or []), seeds or table.seeds
        failed: dict[str, str] = {}
        if table.kind == "distill":
            distilled = distillations.jobs_of(table, chosen, wanted, folder, quick=quick)
            failed = distillations.run_jobs(distilled, folder, sys.stderr, accept_changes=accept_changes)
        first, started = chain.stages(table, chosen)
        grid = results.jobs_of(table, first, wanted, folder, quick=quick)
        check(grid, accept_changes=accept_changes)
        make_folder(folder)
        with alone_in(folder):
            with ManyRuns(sys.stderr, len(grid.jobs)) as view:
                failed |= run_jobs(grid.jobs, view, memory=_MEMORY, at_once=at_once, accept_changes=accept_changes)
            if started:
                grid, unstarted = chain.started_jobs(table, started, wanted, folder, quick=quick)
                for run, reason in unstarted.items():
                    say(f"{run} is not run: {reason}")
                failed |= unstarted
                check(grid, accept_changes=accept_changes)
                with ManyRuns(sys.stderr, len(grid.jobs)) as view:
                    failed |= run_jobs(grid.jobs, view, memory=_MEMORY, at_once=at_once, accept_changes=accept_changes)
        found = results.outcomes(table, folder, quick=quick)
        file = folder / results.RESULT
        write_output(file, as_json(results.as_record(label, table, found, folder, quick=quick)))
        print_comparison(*results.as_text(table, found), f"{table.title}. {table.paper}\n{table.reading.text()}")
        if table.note:
            say(table.note)
        for text in dict.fromkeys([*table.deviations, *(f"{r.method}: {d}" for r in table.rows for d in r.deviations)]):
            say(f"deviation: {text}")
        if quick:
            say("a short trial: its figures are not those of the table")
        typer.echo(f"results: {file}")
        if failed:
            raise RunError(f"{len(failed)} runs failed, as said above: {', '.join(failed)}.")

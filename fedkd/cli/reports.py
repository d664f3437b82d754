"""`fedkd compare`, `report`, `figures` and `watch`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from ..files import write_output
from .common import AcceptChanges, RunFolders, app, exit_codes, say
from .tables import print_comparison

StyleOption = Annotated[
    Literal["paper", "slides"],
    typer.Option("--style", help="Figures in the width of a column, or wider with large letters."),
]


Baseline = Annotated[str | None, typer.Option(help="Show differences to this strategy.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="STRATEGY=NAME", help="Show a strategy under another name; several times."),
]
Rows = Annotated[
    str | None, typer.Option(metavar="A,B", help="Show only these strategies, in this order; by default all.")
]


@app.command()
def compare(
    paths: RunFolders,
    metric: Annotated[str | None, typer.Option(help="The metric; by default the first that all runs have.")] = None,
    target: Annotated[float | None, typer.Option(help="Also show rounds, MB and seconds to this value.")] = None,
    baseline: Baseline = None,
    name: Names = None,
    rows: Rows = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Show only these columns, in this order; also other metrics."),
    ] = None,
    interval: Annotated[
        Literal["student", "bootstrap"], typer.Option(help="How the 95 % interval over seeds is made.")
    ] = "student",
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A table for each value of this key, such as data.partition."),
    ] = None,
    across: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Also compare runs that differ in this key.")
    ] = None,
    accept_changes: AcceptChanges = False,
    out: Annotated[Path | None, typer.Option(help="A folder for the tables and the figures.")] = None,
    style: StyleOption = "paper",
) -> None:
    """Compare finished runs: means over seeds, paired differences, fairness over nodes, cost to a target."""
    with exit_codes("nothing is lost"):
        from ..reports import compare as comparing
        from ..reports import tables as printed
        from ..reports.selection import names_in, words_in
        from ..runs.results import arms_of, completed, find_runs
        from ..runs.run_folder import make_folder

        if target is not None and not math.isfinite(target):
            raise InputError(f"--target {target}: give a number.")
        runs, problems = find_runs(paths)
        runs, others = completed(runs)
        problems += others
        if not runs:
            raise InputError("No run has been completed. " + " ".join(problems))
        groups = comparing.split(runs, by or [], across or [], accept_changes=accept_changes)
        chosen = words_in(columns or "")
        known = {one for run in runs for one in run.metrics()}
        tables, refused = comparing.compare_groups(
            groups, metric=metric, target=target, baseline=baseline,
            names=names_in(name or [], [arms_of(group)[0] for group in groups.values()]), rows=words_in(rows or ""),
            beside=printed.check_columns(chosen, known, target=target is not None), interval=interval,
        )  # fmt: skip
        if out is not None:
            make_folder(out)
        for problem in [*problems, *refused, *(problem for one in tables for problem in one.problems)]:
            say(f"fedkd: {problem}", err=True)
        for one in tables:
            print_comparison(*printed.table(one, chosen), printed.caption(one, chosen))
        if out is not None:
            for ending, text in (
                ("md", printed.to_markdown(tables, chosen)),
                ("tex", printed.to_latex(tables, chosen)),
                ("csv", printed.to_csv(tables)),
            ):
                write_output(out / f"compare.{ending}", text.encode())
                say(f"written: {out / f'compare.{ending}'}")
            from ..reports.figures import write_figures  # imports matplotlib

            drawn = write_figures(tables, out / "figures", style)
            say(f"written: {len(drawn)} files in {out / 'figures'}")


@app.command()
def report(
    paths: RunFolders,
    output: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="The title of the page.")] = None,
    baseline: Baseline = None,
    name: Names = None,
    rows: Rows = None,
) -> None:
    """Write one page on runs that needs no network: curves, tables, partitions, nodes, methods' figures."""
    with exit_codes("nothing is lost"):
        from ..reports import report as reporting
        from ..reports.selection import words_in

        chosen = words_in(rows or "")
        for problem in reporting.report(paths, output, title, baseline=baseline, names=name or [], rows=chosen):
            say(f"fedkd: {problem}", err=True)
        say(f"report: {output}")


@app.command()
def figures(
    path: Annotated[Path, typer.Argument(help="The folder of a run.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="A folder for the figures.")],
    style: StyleOption = "paper",
) -> None:
    """Draw a run's figures for a paper or slides: PDF, SVG and PNG, and their numbers as CSV."""
    with exit_codes("nothing is lost"):
        from ..config import read_table
        from ..runs import distill, figures
        from ..runs.run_folder import CONFIG

        is_distillation = (path / CONFIG).is_file() and "distiller" in read_table(path / CONFIG, path)
        paths, problems = (distill if is_distillation else figures).redraw(path, output, style)
        for problem in problems:
            say(f"fedkd: {problem}", err=True)
        for written in paths:
            say(f"written: {written}")


@app.command()
def watch(
    path: Annotated[Path, typer.Argument(help="The folder of a run.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on this machine; 0: a free one.")] = 8989,
) -> None:
    """Show a run's report during the run, in a browser on this machine only, until Ctrl-C."""
    with exit_codes("the run itself continues"):
        from ..reports import watch as watching

        page = watching.make_app(path)
        listening = watching.listen(port)
        say(f"http://127.0.0.1:{listening.getsockname()[1]}/ shows {path}; Ctrl-C ends it.")
        watching.serve(page, listening)

"""The command line: running, comparing and showing federations. Torch is imported only by what needs it."""

from __future__ import annotations

import contextlib
import json as json_module
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .errors import InputError, RunError

if TYPE_CHECKING:
    from .data.federated_data import FederatedData

# Neither Flower nor Ray shall call home from a user's machine unless the user says so.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

app = typer.Typer(
    help="Federated knowledge distillation: simulate, scale out, deploy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ConfigPath = Annotated[Path | None, typer.Argument(help="A TOML run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as strategy.beta=3.")
]


@contextlib.contextmanager
def _exit_codes(after: str = "continue with --resume") -> Iterator[None]:
    """Turn errors into one clear message and an exit code: 1 failed, 2 refused, 130 interrupted.

    `after`: what an interrupted user needs to know.
    """
    try:
        yield
    except InputError as error:
        typer.echo(f"fedkd: {error}", err=True)
        raise typer.Exit(2) from None
    except RunError as error:
        typer.echo(f"fedkd: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo(f"fedkd: interrupted; {after}.", err=True)
        raise typer.Exit(130) from None


@app.command()
def run(
    config: ConfigPath = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default a new one in runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json as the last line.")] = False,
) -> None:
    """Run a federation from a config, or continue one after a crash."""
    with _exit_codes():
        _refuse_mixed(config, out, overrides, resume)
        _quiet()
        from .config import read_config
        from .runs import run as runs
        from .runs.progress import Progress
        from .runs.run_folder import refuse_used, run_folder_of

        progress = Progress(sys.stderr)
        if config is not None:
            parsed = read_config(config, overrides or [])
            folder = out or run_folder_of(parsed)
            refuse_used(folder)
            with progress:
                summary = runs.run(parsed, folder, progress.update, progress.step, progress.line)
        else:
            assert resume is not None
            folder = resume
            with progress:
                summary = runs.resume(folder, progress.update, progress.step, progress.line)
        _print_summary(summary, folder)
        if json:
            typer.echo(json_module.dumps(summary))


@app.command()
def distill(
    config: ConfigPath = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The folder; by default a new one in runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the distillation in this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json as the last line.")] = False,
) -> None:
    """Distil one named set into a few virtual images, or continue after a crash."""
    with _exit_codes():
        _refuse_mixed(config, out, overrides, resume)
        from .config import read_distill_config
        from .runs import distill as distillations
        from .runs.progress import Progress
        from .runs.run_folder import free_folder, refuse_used

        progress = Progress(sys.stderr, "iteration")
        if config is not None:
            parsed = read_distill_config(config, overrides or [])
            name = f"distill-{parsed.distiller.name.rsplit(':', 1)[-1]}-{parsed.data.name.rsplit('/', 1)[-1]}"
            folder = out or free_folder(Path("runs"), f"{name.replace(':', '-')}-seed{parsed.seed}")
            refuse_used(folder)
        else:
            assert resume is not None
            folder = resume
            parsed = read_distill_config(folder / "config.toml")
        with progress:
            told = lambda number, metrics: progress.advance(number, parsed.iterations, metrics)  # noqa: E731
            if config is not None:
                summary = distillations.distill(parsed, folder, told)
            else:
                summary = distillations.resume(folder, told)
        accuracy = summary["final"]["test/accuracy"]
        typer.echo(
            f"{summary['distiller']}, {parsed.ipc} a class: test accuracy {accuracy:.4f} "
            f"+- {summary['final']['test/deviation']:.4f} ({parsed.evaluate.networks} networks), "
            f"at the start {summary['initial']['test/accuracy']:.4f}; {summary['seconds']['total']:.1f} s"
        )
        typer.echo("figures: " + " ".join(sorted(str(path) for path in (folder / "figures").glob("*.png"))))
        typer.echo(f"folder: {folder}")
        if json:
            typer.echo(json_module.dumps(summary))


def _refuse_mixed(config: Path | None, out: Path | None, overrides: list[str] | None, resume: Path | None) -> None:
    if (config is None) == (resume is None):
        raise InputError("Give either a config, or --resume with a run folder.")
    if resume is not None and (out is not None or overrides):
        raise InputError("--resume continues a run as it was: without --out and --set.")


@app.command()
def sweep(
    configs: Annotated[list[Path], typer.Argument(help="TOML run files.")],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="A key and its values; several times for a grid."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Such as 0..4 or 0,1,7.")] = "0",
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The folder of the runs; by default runs/sweep-<config>.")] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time at most; by default as many as fit.")
    ] = None,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB that a run is reckoned with.")] = 2.0,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a run; by default what its engine's workers have.")
    ] = None,
) -> None:
    """Run a grid of configs and seeds, several at a time. The same command again goes on where it was."""
    with _exit_codes("the same command goes on"):
        from .runs.progress import ManyRuns
        from .runs.run_folder import alone_in, make_folder
        from .runs.sweep import check, plan
        from .simulations.sweep import run_jobs

        folder = out or Path("runs") / f"sweep-{configs[0].stem}"
        grid = plan(configs, overrides or [], vary or [], seeds, folder)
        check(grid.jobs)
        make_folder(folder)
        with alone_in(folder), ManyRuns(sys.stderr, len(grid.jobs)) as view:
            failed = run_jobs(grid.jobs, view, memory=memory * 2**30, gpus=gpus, at_once=at_once)
        total = len(grid.jobs) + grid.finished
        told = f"{total - len(failed)} of {total} runs have ended well"
        told += f", of which {grid.finished} were there" if grid.finished else ""
        typer.echo(told + (f", {len(failed)} failed" if failed else ""))
        by = "".join(f" --by {key}" for key in grid.varied if not key.startswith("strategy"))
        baseline = f" --baseline {grid.first}" if grid.first else ""
        typer.echo(f"next: fedkd compare {shlex.quote(str(folder))}{by}{baseline}")
        if failed:
            raise RunError(f"{len(failed)} runs failed, as said above: {', '.join(failed)}.")


RunFolders = Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.")]


@app.command()
def compare(
    paths: RunFolders,
    metric: Annotated[str | None, typer.Option(help="By default the first that all runs have.")] = None,
    target: Annotated[float | None, typer.Option(help="Also rounds, megabytes and seconds to this value.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The strategy that differences are taken to.")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A table for each value of this key, such as data.partition."),
    ] = None,
    across: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Compare runs all the same that differ in this key.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for compare.md, compare.tex and compare.csv.")] = None,
) -> None:
    """Compare finished runs: means over seeds, paired differences, fairness over nodes, cost to a target."""
    with _exit_codes("nothing is lost"):
        from .reports import compare as comparing
        from .reports import tables as printed
        from .runs.results import completed, find_runs
        from .runs.run_folder import make_folder

        if target is not None and not math.isfinite(target):
            raise InputError(f"--target {target}: give a number.")
        runs, problems = find_runs(paths)
        runs, others = completed(runs)
        problems += others
        if not runs:
            raise InputError("No run has been completed. " + " ".join(problems))
        tables, refused = [], []
        for title, group in comparing.split(runs, by or [], across or []).items():
            try:
                tables.append(comparing.compare(group, metric=metric, target=target, baseline=baseline, title=title))
            except InputError as error:  # the other groups can be shown all the same
                refused.append(f"{title}: {error}" if title else str(error))
        if not tables:
            raise InputError("\n".join(refused))
        if out is not None:
            make_folder(out)
        for problem in [*problems, *refused, *(problem for one in tables for problem in one.problems)]:
            typer.echo(f"fedkd: {problem}", err=True)
        for one in tables:
            _print_comparison(*printed.table(one), printed.caption(one))
        if out is not None:
            for ending, text in (
                ("md", printed.to_markdown(tables)),
                ("tex", printed.to_latex(tables)),
                ("csv", printed.to_csv(tables)),
            ):
                try:
                    (out / f"compare.{ending}").write_text(text)
                except OSError as error:
                    raise InputError(f"--out {out}: compare.{ending} cannot be written: {error.strerror}.") from error
                typer.echo(f"written: {out / f'compare.{ending}'}")


@app.command()
def report(
    paths: RunFolders,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Its title.")] = None,
) -> None:
    """Write one page on runs that needs no network: curves, tables, partitions, nodes, what methods show."""
    with _exit_codes("nothing is lost"):
        from .reports import report as reporting

        for problem in reporting.report(paths, output, title):
            typer.echo(f"fedkd: {problem}", err=True)
        typer.echo(f"report: {output}")


@app.command()
def watch(
    path: Annotated[Path, typer.Argument(help="The folder of a run.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes a free one.")] = 8989,
) -> None:
    """Show a run's report while it goes on, in a browser on this machine only, until Ctrl-C."""
    with _exit_codes("the run itself goes on"):
        from .reports import watch as watching

        page = watching.make_app(path)
        listening = watching.listen(port)
        typer.echo(f"http://127.0.0.1:{listening.getsockname()[1]}/ shows {path}; Ctrl-C ends it.")
        watching.serve(page, listening)


@app.command("list")
def list_names(
    what: Annotated[
        Literal["strategies", "models", "datasets", "partitions", "engines", "distillers", "trackers"],
        typer.Argument(),
    ],
) -> None:
    """Print the names that a config can use."""
    from .registry import names

    more = {
        "strategies": ["path/to/file.py:Class", "flwr.serverapp.strategy:<Class>"],
        "models": ["torchvision:<name>", "path/to/file.py:function"],
        "datasets": [
            "npz:<file>",
            "images:<folder>",
            "cifar10c:<corruption>",
            "any <name> with a file <data.root>/<name>.npz",
        ],
        "partitions": ["path/to/file.py:function"],
        "engines": ["path/to/file.py:Class"],
        "distillers": ["path/to/file.py:Class"],
        "trackers": ["path/to/file.py:Class"],
    }
    for name in names(what) + more[what]:
        typer.echo(name)


@app.command()
def partition(
    config: Annotated[Path, typer.Argument(help="A TOML run file.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The picture of the label heat map.")] = Path("partition.png"),
    write: Annotated[
        Path | None, typer.Option(help="A folder for each node's images, as a set of its own: node-0.npz, ...")
    ] = None,
) -> None:
    """Print who holds what, draw the label heat map, and write each node's images where a folder is given."""
    with _exit_codes():
        from .config import read_config
        from .data.federation import federate, write_sets
        from .runs.figures import draw_partition, partition_name

        parsed = read_config(config, overrides or [])
        if parsed.data.partition is None:
            raise InputError("data.sites: the images are at the sites; there is no partition to show.")
        data = federate(parsed.data, parsed.seed)
        _print_partition(data)
        seed = parsed.seed if parsed.data.partition.seed is None else parsed.data.partition.seed
        if write is not None:
            typer.echo("sets: " + " ".join(str(path) for path in write_sets(data, write)))
        typer.echo(f"label heat map: {draw_partition(data, f'{partition_name(parsed)}, seed {seed}', out)}")


deploy = typer.Typer(help="A federation of real sites.", no_args_is_help=True)
app.add_typer(deploy, name="deploy")


@deploy.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder for the federation.")],
    config: Annotated[Path, typer.Option(help="The run file.")],
    sites: Annotated[int, typer.Option(min=1, help="How many sites.")],
    host: Annotated[str, typer.Option(help="Where sites reach the server: a name or an address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="And the port.")] = 9443,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No encryption, no authentication: for trials only.")
    ] = False,
) -> None:
    """Write a federation, ready to start: certificates, keys, start scripts, a README of five steps."""
    with _exit_codes():
        from .deployment.provision import provision

        provision(folder, config, sites, host, port, insecure=insecure)
        typer.echo(f"{folder}: {sites} sites{', INSECURE' if insecure else ''}. Go on with {folder / 'README.md'}.")


@deploy.callback()
def _deploy() -> None:
    """Keep `init` a command of its own."""


def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _print_partition(data: FederatedData) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = data.label_counts()
    table = Table(title=f"{data.clients} nodes, {int(counts.sum())} training images", title_justify="left")
    for name in ("node", "domain", "train", "test", *data.node_classes[:20]):
        table.add_column(name, justify="right")
    if len(data.node_classes) > 20:
        table.add_column(f"... {len(data.node_classes)} classes")
    for node in range(data.clients):
        domain = data.domain_names[data.node_domains[node]]
        cells = [node, domain, counts[node].sum(), len(data.test_parts[node]), *counts[node, :20]]
        table.add_row(*(str(cell) if isinstance(cell, str) or cell else "·" for cell in cells[:1] + cells[1:]))
    # a table in a file is as wide as it needs to be
    Console(width=None if sys.stdout.isatty() else 40 + 8 * min(len(data.node_classes), 20) + 20).print(table)
    public = "none" if data.public is None else f"{len(data.public.labels)} images"
    typer.echo(f"global test: {len(data.test.labels)} images; public set: {public}")


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{summary['strategy']}, {summary['rounds']} rounds, seed {summary['seed']}"
    table = Table(title=title, title_justify="left")
    for name in ("metric", "final", "best"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for name, value in summary["final"].items():
        table.add_row(name, f"{value:.4f}", f"{summary['best'][name]:.4f}")
    console = Console()
    console.print(table)
    for way in ("up", "down"):
        kinds = ", ".join(f"{kind} {_human(size)}" for kind, size in summary["bytes"][way].items()) or "nothing"
        console.print(f"sent {way}: {kinds}", highlight=False)
    console.print(f"{summary['seconds']['total']:.1f} s, {summary['failures']} failures", highlight=False)
    figures = sorted(str(path) for path in (folder / "figures").glob("*.png"))
    console.print("figures: " + " ".join(figures), highlight=False, soft_wrap=True)
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)


def _print_comparison(header: list[str], rows: list[list[str]], caption: str) -> None:
    """Print a table; on a narrow terminal in parts, each with the strategies' names."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = [max(map(len, column)) + 3 for column in zip(header, *rows, strict=True)]
    # a table in a file is as wide as it needs to be
    console = Console(width=None if sys.stdout.isatty() else max(sum(widths) + 1, 120))
    parts: list[list[int]] = [[]]
    for number in range(1, len(header)):
        if parts[-1] and widths[0] + sum(widths[i] for i in parts[-1]) + widths[number] + 1 > console.width:
            parts.append([])
        parts[-1].append(number)
    console.print(Text(caption))
    for part in parts:
        table = Table()
        for number in (0, *part):
            table.add_column(header[number], justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(row[number]) for number in (0, *part)))
        console.print(table)


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


if __name__ == "__main__":
    app()

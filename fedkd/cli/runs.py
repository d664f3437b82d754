"""`fedkd run`, `distill`, `sweep` and `partition`."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError, RunError
from ..files import as_json
from .common import AcceptChanges, ConfigPath, Overrides, app, exit_codes, how_to_resume, say
from .tables import print_partition, print_summary, print_trials


@app.command()
def run(
    config: ConfigPath = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; by default a new one in runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder.")] = None,
    accept_changes: AcceptChanges = False,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json as the last line.")] = False,
) -> None:
    """Run a federation from a config, or continue one after a crash."""
    folder: Path | None = resume
    with exit_codes(lambda: how_to_resume("run", folder)):
        _refuse_mixed(config, out, resume)
        _quiet()
        from ..config import read_config
        from ..runs import run as runs
        from ..runs.progress import Progress
        from ..runs.run_folder import refuse_used, run_folder_of

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
                summary = runs.resume(
                    folder,
                    progress.update,
                    progress.step,
                    progress.line,
                    overrides=overrides or [],
                    accept_changes=accept_changes,
                )
        print_summary(summary, folder)
        if json:
            typer.echo(as_json(summary).decode().strip())


@app.command()
def distill(
    config: ConfigPath = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The folder; by default a new one in runs/.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the distillation in this folder.")] = None,
    accept_changes: AcceptChanges = False,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json as the last line.")] = False,
) -> None:
    """Distil one named set into a few virtual images, or continue after a crash."""
    folder: Path | None = resume
    with exit_codes(lambda: how_to_resume("distill", folder)):
        _refuse_mixed(config, out, resume)
        if resume is not None and overrides:
            raise InputError("--resume continues a distillation as it was: without --set.")
        from ..config import read_distill_config
        from ..runs import distill as distillations
        from ..runs.progress import Progress
        from ..runs.run_folder import free_folder, refuse_odd_files, refuse_used

        progress = Progress(sys.stderr, "iteration")
        if config is not None:
            parsed = read_distill_config(config, overrides or [])
            name = f"distill-{parsed.distiller.name.rsplit(':', 1)[-1]}-{parsed.data.name.rsplit('/', 1)[-1]}"
            folder = out or free_folder(Path("runs"), f"{name.replace(':', '-')}-seed{parsed.seed}")
            refuse_used(folder)
        else:
            assert resume is not None
            folder = resume
            refuse_odd_files(folder)
            parsed = read_distill_config(folder / "config.toml")
        with progress:
            on_iteration = lambda number, metrics: progress.advance(number, parsed.iterations, metrics)  # noqa: E731
            if config is not None:
                summary = distillations.distill(parsed, folder, on_iteration)
            else:
                summary = distillations.resume(folder, on_iteration, accept_changes=accept_changes)
        accuracy = summary["final"]["test/accuracy"]
        typer.echo(
            f"{summary['distiller']}, {parsed.ipc} per class: test accuracy {accuracy:.4f} "
            f"+- {summary['final']['test/deviation']:.4f} ({parsed.evaluate.networks} networks), "
            f"at the start {summary['initial']['test/accuracy']:.4f}; {summary['seconds']['total']:.1f} s"
        )
        typer.echo("figures: " + " ".join(sorted(str(path) for path in (folder / "figures").glob("*.png"))))
        typer.echo(f"folder: {folder}")
        if json:
            typer.echo(as_json(summary).decode().strip())


def _refuse_mixed(config: Path | None, out: Path | None, resume: Path | None) -> None:
    if (config is None) == (resume is None):
        raise InputError("Give either a config, or --resume with a run folder.")
    if resume is not None and out is not None:
        raise InputError("--resume continues a run in its folder: without --out.")


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
        int | None, typer.Option(min=1, help="The most runs at a time; by default as many as fit.")
    ] = None,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB of memory reserved for each run.")] = 2.0,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs per run; by default those of its engine's workers.")
    ] = None,
    accept_changes: AcceptChanges = False,
    budget: Annotated[
        int | None, typer.Option(min=1, help="Search in place of a grid: so many trials, chosen by Optuna.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Of a search: what to improve, such as personal/accuracy.")] = None,
) -> None:
    """Run a grid of configs and seeds, several at a time; or search ranges of keys, such as lr=0.01..0.3:log.

    Repeat the command to continue.
    """
    with exit_codes("repeat the command to continue"):
        if (budget is None) != (metric is None):
            raise InputError("--budget and --metric belong together: a search of so many trials by this metric.")
        if budget is not None and metric is not None:
            _search(configs, vary or [], seeds, overrides or [], out, budget, metric)
            return
        from ..registry import installed
        from ..runs.progress import ManyRuns
        from ..runs.run_folder import alone_in, make_folder
        from ..runs.sweep import check, plan

        with installed("fedkd sweep"):
            from ..simulations.sweep import run_jobs

        for option, value in (("--gpus", gpus), ("--memory", memory)):
            if value is not None and not math.isfinite(value):
                raise InputError(f"{option} {value}: give a number.")
        folder = out or Path("runs") / f"sweep-{configs[0].stem}"
        grid = plan(configs, overrides or [], vary or [], seeds, folder)
        check(grid, accept_changes=accept_changes)
        make_folder(folder)
        with alone_in(folder), ManyRuns(sys.stderr, len(grid.jobs)) as view:
            failed = run_jobs(
                grid.jobs, view, memory=memory * 2**30, gpus=gpus, at_once=at_once, accept_changes=accept_changes
            )
        total = len(grid.jobs) + len(grid.done)
        line = f"{total - len(failed)} of {total} runs have ended well"
        line += f", of which {len(grid.done)} were there" if grid.done else ""
        typer.echo(line + (f", {len(failed)} failed" if failed else ""))
        by = "".join(f" --by {key}" for key in grid.varied if not key.startswith("strategy"))
        baseline = f" --baseline {grid.first}" if grid.first else ""
        typer.echo(f"next: fedkd compare {shlex.quote(str(folder))}{by}{baseline}")
        if failed:
            raise RunError(f"{len(failed)} runs failed, as said above: {', '.join(failed)}.")


def _search(
    configs: list[Path], vary: list[str], seeds: str, overrides: list[str], out: Path | None, budget: int, metric: str
) -> None:
    """Search settings, print the best trials, and say how to run the best one with fresh seeds."""
    from ..runs.progress import Progress
    from ..runs.run_folder import alone_in, make_folder
    from ..runs.search import Trial, search
    from ..runs.sweep import seeds_of

    if len(configs) != 1:
        raise InputError("--budget: a search has one config.")
    if len(seed := seeds_of(seeds)) != 1:
        raise InputError("--seeds: a search has one seed; the winner is then run with others.")
    _quiet()
    folder = out or Path("runs") / f"search-{configs[0].stem}"
    progress = Progress(sys.stderr, "trial")

    def show(trial: Trial, done: int) -> None:
        value = trial.state if trial.value is None else f"{trial.value:.4f}"
        progress.line(f"trial {done}/{budget}  {_settings(trial.values)}  {value}")

    make_folder(folder)
    with alone_in(folder), progress:
        found = search(configs[0], overrides, vary, metric, budget, seed[0], folder, show)
    print_trials(found.trials, metric)
    say(f"best: {_settings(found.best.values)}")
    typer.echo(f"next: fedkd sweep {shlex.quote(str(found.winner))} --seeds {seed[0] + 1}..{seed[0] + 3}")


def _settings(values: dict[str, Any]) -> str:
    shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values.values())
    return "  ".join(f"{key}={value}" for key, value in zip(values, shown, strict=True))


@app.command()
def partition(
    config: Annotated[Path, typer.Argument(help="A TOML run file.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The file for the label heat map.")] = Path("partition.png"),
    write: Annotated[
        Path | None, typer.Option(help="A folder for the images of each node, one set each: node-0.npz, ...")
    ] = None,
) -> None:
    """Print which node has which images, draw the label heat map, and with --write write each node's images."""
    with exit_codes():
        from ..config import read_config
        from ..data.federation import federate
        from ..data.writing import write_sets
        from ..runs import charts
        from ..runs.figures import check_picture, partition_name, write_picture
        from ..runs.run_folder import make_folder, partition_of
        from ..runs.styles import SCREEN

        check_picture("--out", out)
        if write is not None:
            make_folder(write, "--write")
        parsed = read_config(config, overrides or [])
        if parsed.data.partition is None:
            raise InputError("data.sites: the images are at the sites; there is no partition to show.")
        data = federate(parsed.data, parsed.seed)
        print_partition(data)
        seed = parsed.seed if parsed.data.partition.seed is None else parsed.data.partition.seed
        if write is not None:
            typer.echo("sets: " + " ".join(str(path) for path in write_sets(data, write)))
        kept, title = partition_of(data), f"{partition_name(parsed)}, seed {seed}"
        typer.echo(f"label heat map: {write_picture(lambda: charts.partition(kept, title, SCREEN), out)}")


@app.command()
def describe(
    config: Annotated[Path, typer.Argument(help="A TOML run file whose data are on this machine.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")],
    overrides: Overrides = None,
    form: Annotated[
        bool, typer.Option("--form", help="Without any learned number: the sites agree on them before round 1.")
    ] = False,
) -> None:
    """Write what samples are and how they are encoded, for `data.sites.spec` of a federation of real sites."""
    with exit_codes("nothing is written"):
        from ..config import read_config
        from ..data.agreement import Agreement, to_json
        from ..data.codec import without_numbers
        from ..data.federation import federate
        from ..files import write_output

        parsed = read_config(config, overrides or [])
        if parsed.data.sites is not None:
            raise InputError("data.sites: the samples are at the sites; name a config with samples on this machine.")
        data = federate(parsed.data, parsed.seed)
        if form and data.spec.learned:
            raise InputError(
                "--form: data.tokenizer = 'words' learns its words from the texts of all; set tokenizer = 'bytes', or "
                "write the file without --form."
            )
        codec = without_numbers(data.spec, len(data.codec.target_mean)) if form else data.codec
        write_output(out, to_json(Agreement(codec, data.node_classes)))
        about = f"codec {codec.hash}" if codec.learned else "no codec"
        say(f"{out}: {data.spec.describe()}, {len(data.node_classes)} classes, {about}")


def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)

"""The command line: `fedkd run`, `distill`, `list`, `partition`. Torch is imported only by what needs it."""

from __future__ import annotations

import contextlib
import json as json_module
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .errors import InputError, RunError

if TYPE_CHECKING:
    from .environment import Environment
    from .federated import FederatedData
    from .strategy import Record

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
def _exit_codes() -> Iterator[None]:
    """Turn errors into one clear message and an exit code: 1 failed, 2 refused, 130 interrupted."""
    try:
        yield
    except InputError as error:
        typer.echo(f"fedkd: {error}", err=True)
        raise typer.Exit(2) from None
    except RunError as error:
        typer.echo(f"fedkd: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("fedkd: interrupted; continue with --resume.", err=True)
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
        from . import run as runs
        from .config import read_config
        from .runfolder import free_folder, refuse_used

        progress = _Progress()
        if config is not None:
            parsed = read_config(config, overrides or [])
            name = f"{parsed.strategy.name.rsplit(':', 1)[-1]}-{parsed.data.set_names[0].rsplit('/', 1)[-1]}"
            folder = out or free_folder(Path("runs"), f"{name.replace(':', '-')}-seed{parsed.seed}")
            refuse_used(folder)
            with progress:
                summary = runs.run(parsed, folder, progress.update, progress.step)
        else:
            assert resume is not None
            folder = resume
            with progress:
                summary = runs.resume(folder, progress.update, progress.step)
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
        from . import distill as distillations
        from .config import read_distill_config
        from .runfolder import free_folder, refuse_used

        progress = _Progress("iteration")
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


@app.command("list")
def list_names(
    what: Annotated[
        Literal["strategies", "models", "datasets", "partitions", "engines", "distillers"], typer.Argument()
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
    }
    for name in names(what) + more[what]:
        typer.echo(name)


@app.command()
def partition(
    config: Annotated[Path, typer.Argument(help="A TOML run file.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The picture of the label heat map.")] = Path("partition.png"),
) -> None:
    """Print who holds what, and draw the label heat map."""
    with _exit_codes():
        from .config import read_config
        from .federated import federate
        from .figures import draw_partition
        from .run import partition_name

        parsed = read_config(config, overrides or [])
        data = federate(parsed.data, parsed.seed)
        _print_partition(data)
        seed = parsed.seed if parsed.data.partition.seed is None else parsed.data.partition.seed
        typer.echo(f"label heat map: {draw_partition(data, f'{partition_name(parsed)}, seed {seed}', out)}")


def _quiet() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _print_partition(data: FederatedData) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = data.label_counts()
    table = Table(title=f"{data.clients} nodes, {int(counts.sum())} training images", title_justify="left")
    for name in ("node", "domain", "train", "test", *data.classes[:20]):
        table.add_column(name, justify="right")
    if len(data.classes) > 20:
        table.add_column(f"... {len(data.classes)} classes")
    for node in range(data.clients):
        domain = data.domain_names[data.node_domains[node]]
        cells = [node, domain, counts[node].sum(), len(data.test_parts[node]), *counts[node, :20]]
        table.add_row(*(str(cell) if isinstance(cell, str) or cell else "·" for cell in cells[:1] + cells[1:]))
    # a table in a file is as wide as it needs to be
    Console(width=None if sys.stdout.isatty() else 40 + 8 * min(len(data.classes), 20) + 20).print(table)
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


def _human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


_QUIET_SECONDS = 10.0  # between two lines about the same round


class _Progress:
    """A bar with the current metrics and the time left; plain lines where the output is no terminal."""

    def __init__(self, unit: str = "round") -> None:
        self._unit = unit
        self._begin = time.monotonic()
        self._first: int | None = None
        self._shown = ""
        self._bar: Any = None
        self._task: Any = None
        self._step_task: Any = None
        self._told = self._begin

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, record: Record, environment: Environment) -> None:
        """Show the round that has ended."""
        for failure in record.failures:
            self._line(f"round {record.number}: node {failure['node']}, {failure['action']}: {failure['reason']}")
        self.advance(record.number, environment.config.rounds, record.metrics)

    def advance(self, number: int, total: int, metrics: dict[str, float]) -> None:
        """Show that so many are done; of those that nothing was measured in, a line every ten seconds at most."""
        if self._first is None:
            self._first, self._begin = number, time.monotonic()
        shown = [(n, v) for n, v in sorted(metrics.items()) if n.endswith("accuracy")]
        if shown:
            self._shown = "  ".join(f"{name} {value:.3f}" for name, value in shown)
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=number, description=self._shown)
            return
        if self._unit != "round" and not shown and time.monotonic() - self._told < _QUIET_SECONDS:
            return
        self._told = time.monotonic()
        done = number - self._first
        left = (time.monotonic() - self._begin) / done * (total - number) if done else 0.0
        text = f"{self._unit} {number}/{total}" + (f"  {self._shown}" if shown else "")
        self._line(text + (f"  left {left:.0f} s" if done and number < total else ""))

    def step(self, number: int, what: str, done: int, total: int) -> None:
        """Show how far long work on the server is: a second bar, or a line every ten seconds."""
        if self._bar is not None:
            if self._step_task is None:
                self._step_task = self._bar.add_task(what, total=total)
            self._bar.update(self._step_task, description=what, completed=done, total=total, visible=done < total)
        elif time.monotonic() - self._told > _QUIET_SECONDS and 0 < done < total:
            self._told = time.monotonic()
            self._line(f"round {number}: {what} {done}/{total}")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            typer.echo(text, err=True)


if __name__ == "__main__":
    app()

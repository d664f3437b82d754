"""The common part of the commands: the app, their arguments, and exit codes.

Exit codes: 0 done, 1 the run failed, 2 the input was refused, 129, 130 and 143 ended by SIGHUP, SIGINT and SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, RunError, described, on_one_line, place_of, printable
from ..masking import masked_text
from ..stopping import Stopped, stoppable

# Flower and Ray must not send telemetry from a user's machine unless the user allows it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_CONFIG = "config.toml"  # of a run folder; `runs.run_folder` would import torch
_NO_PATH = (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP)  # a path that was given cannot be looked at
_DEBUG = "FEDKD_DEBUG"  # an environment variable, so that worker processes have it too

app = typer.Typer(
    help="Federated knowledge distillation: simulate, scale out, deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path | None, typer.Argument(help="A TOML run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as strategy.beta=3.")
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Go on although data, files or versions have changed since; record it."),
]
RunFolders = Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedkd {version('fedkd')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ[_DEBUG] = "1"


@contextlib.contextmanager
def exit_codes(after: str | Callable[[], str] = "") -> Iterator[None]:
    """Turn any error into one clear message and an exit code.

    `after`: what to do after a signal, as text or as a function that returns it.
    """
    try:
        with stoppable():
            yield
    except typer.Exit:
        raise
    except (InputError, RunError) as error:
        _report(str(error))
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
    except KeyboardInterrupt as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else 2
        hint = after if isinstance(after, str) else after()
        _report(f"{'interrupted' if number == 2 else f'ended by {stopped}'}{f'; {hint}' if hint else ''}.")
        raise typer.Exit(128 + number) from None
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _NO_PATH and isinstance(error.filename, str):
            _report(f"{on_one_line(error.filename, 200)}: {error.strerror}.")
            raise typer.Exit(2) from None
        _report(f"{described(error)}{place_of(error)}. The traceback: fedkd --debug ...")
        raise typer.Exit(1) from None


def how_to_resume(command: str, folder: Path | None) -> str:
    """Return what to do after a signal has ended a run: how to continue it, or that nothing had begun."""
    if folder is None or not (folder / _CONFIG).is_file():
        return "nothing had begun, and nothing is written"
    return f"continue with: fedkd {command} --resume {shlex.quote(str(folder))}"


def say(text: str, *, err: bool = False) -> None:
    """Print text in which names from outside may be: without what moves a terminal's cursor."""
    typer.echo(printable(text), err=err)


def _report(text: str) -> None:
    """Print an error; on a terminal its lines are wrapped between words. With --debug the traceback comes first."""
    if os.environ.get(_DEBUG):
        typer.echo(masked_text(traceback.format_exc()), err=True)
    text = f"fedkd: {masked_text(text)}"
    if sys.stderr.isatty():
        width = max(20, shutil.get_terminal_size().columns)
        fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False, subsequent_indent="  ")
        text = "\n".join(fill.fill(line) for line in text.splitlines())
    say(text, err=True)

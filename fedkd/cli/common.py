"""The common part of the commands: the app, their arguments, and exit codes.

Exit codes: 0 done, 1 the run failed, 2 the input was refused, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, RunError

# Flower and Ray must not send telemetry from a user's machine unless the user allows it.
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
RunFolders = Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.")]


@contextlib.contextmanager
def exit_codes(after: str = "continue with --resume") -> Iterator[None]:
    """Turn errors into one clear message and an exit code: 1 failed, 2 refused, 130 interrupted.

    `after`: the hint after an interrupt.
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

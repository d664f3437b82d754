"""`fedkd deploy init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import app, exit_codes

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
    with exit_codes():
        from ..deployment.provision import provision

        provision(folder, config, sites, host, port, insecure=insecure)
        typer.echo(f"{folder}: {sites} sites{', INSECURE' if insecure else ''}. Go on with {folder / 'README.md'}.")


@deploy.callback()
def _deploy() -> None:
    """Keep `init` a command of its own."""

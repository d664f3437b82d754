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
    sites: Annotated[int, typer.Option(min=1, help="The number of sites.")],
    host: Annotated[str, typer.Option(help="The server's name or address for the sites.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port for the sites.")] = 9443,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No encryption, no authentication: for tests only.")
    ] = False,
) -> None:
    """Write a federation, ready to start: certificates, keys, start scripts, a README with five steps."""
    with exit_codes():
        from ..deployment.provision import provision

        done = provision(folder, config, sites, host, port, insecure=insecure)
        if done.unchecked is not None:
            typer.echo(f"Not checked here, the server checks it before a run: {done.unchecked}", err=True)
        if done.files:
            typer.echo(f"In the app, and so sent to all sites: {', '.join(done.files)}")
        typer.echo(f"{folder}: {sites} sites{', INSECURE' if insecure else ''}. Next: follow {folder / 'README.md'}.")


@deploy.callback()
def _deploy() -> None:
    """Keep `init` a subcommand: typer would merge a single command into its parent."""

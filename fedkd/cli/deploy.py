"""`fedkd deploy`: `init` writes a federation, `renew` its certificate, `launch` starts one of its programs."""

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
    target: Annotated[str, typer.Option(help="scripts, or also files for compose or kubernetes.")] = "scripts",
    force: Annotated[
        bool, typer.Option("--force", help="Write a federation's folder anew; keep keys, certificates, site.env.")
    ] = False,
) -> None:
    """Write a federation, ready to start: certificates, keys, start scripts, a README with five steps."""
    with exit_codes():
        from ..deployment.provision import provision

        done = provision(folder, config, sites, host, port, insecure=insecure, target=target, force=force)
        if done.unchecked is not None:
            typer.echo(f"Not checked here, the server checks it before a run: {done.unchecked}", err=True)
        if done.files:
            typer.echo(f"In the app, and so sent to all sites: {', '.join(done.files)}")
        typer.echo(f"{folder}: {sites} sites{', INSECURE' if insecure else ''}. Next: follow {folder / 'README.md'}.")


@deploy.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="The federation's folder, with ca/ and server/.")],
    host: Annotated[
        str | None, typer.Option(help="The server's name or address for the sites; by default the certificate's.")
    ] = None,
) -> None:
    """Replace the server's certificate and key; sites keep theirs. docs/operations.md says what follows."""
    with exit_codes():
        from ..deployment.authority import renew

        end = renew(folder, host)
        typer.echo(f"{folder / 'server' / 'server.crt'} is new, with its key; valid until {end:%Y-%m-%d}.")


@deploy.command()
def launch(
    program: Annotated[list[str], typer.Argument(help="The program and its arguments, after --.")],
    name: Annotated[str, typer.Option(help="The source that JSON lines name, such as site-1.")],
    log: Annotated[str, typer.Option(envvar="FEDKD_LOG", help="text, or json: one JSON object a line.")] = "text",
    metrics: Annotated[
        str, typer.Option(envvar="FEDKD_METRICS", help="Serve metrics for Prometheus at this port or address.")
    ] = "",
    runs: Annotated[Path, typer.Option(help="The folder of the server's run folders.")] = Path("runs"),
    state: Annotated[Path | None, typer.Option(help="A site's folder `state`: serve the site's metrics.")] = None,
) -> None:
    """Run a program, with its output as JSON and metrics beside it; start.sh uses this."""
    with exit_codes():
        from ..deployment.exporter import metrics_of_run, metrics_of_site, serve_metrics
        from ..deployment.launch import launch

        if metrics:
            serve_metrics(metrics, lambda: metrics_of_run(runs) if state is None else metrics_of_site(state))
        raise typer.Exit(launch(program, name, log or "text"))

"""The Flower App that runs any strategy on real sites, or under Flower's own simulation: its run config, its two apps.

The keys of the run config, set by `flwr run APP --run-config 'key="value"'`:
`config`: a run file, in the app's folder or among those that come with fedkd. `set`: `key=value` overrides of it,
separated by `;`. `out`: the run folder on the server; by default a new one in `runs/`. `resume`: whether to continue
the run in `out`; `accept-changes`: although images, files or versions have changed since it began.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from flwr.app import Context
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid, ServerApp

from ..config import Config, read_config, read_table, to_table
from ..errors import InputError, described, unknown
from ..registry import App, only_of, texts_of
from .launch import LINES
from .on_site import SiteApp

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

# Flower must not send telemetry from a site unless the site allows it.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

KEYS = ("config", "set", "out", "resume", "accept-changes")


def read_run_config(app: Path, run_config: UserConfig) -> Config:
    """Return the config that a run config names. `app`: the folder of the Flower App. Raises InputError.

    The server and all sites read the same: Flower sends the app's folder with the run, and fedkd is installed on all.
    The app can be signed, a run config is not: so it names no code but the app's.
    """
    for key in run_config:
        if key not in KEYS:
            raise unknown("--run-config", key, KEYS)
    name = str(run_config.get("config", ""))
    ours = Path(str(files("fedkd.configs")))
    places = [(app, app / name), (ours, ours / name.removeprefix("configs/"))]
    found = [path for home, path in places if path.is_file() and path.resolve().is_relative_to(home.resolve())]
    if not name or not found:
        raise InputError(f"--run-config 'config={name!r}': neither the app nor fedkd has this run file.")
    overrides = [part.strip() for part in str(run_config.get("set", "")).split(";")]
    own = App(app, frozenset(texts_of(read_table(found[0]))))
    with only_of(own):
        config = read_config(found[0], [part for part in overrides if part])
    own.refuse_foreign_in(to_table(config))
    return config


def _write_to_launcher(text: str) -> None:
    """Write lines of a run to the log of the server: Flower itself keeps them for `flwr log` only. Never waits."""
    with contextlib.suppress(OSError):
        pipe = os.open(os.environ[LINES], os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, text.encode(errors="replace"))
        finally:
            os.close(pipe)


class _InBothLogs(io.TextIOBase):
    """Writes to the run's own output, and to the log of the server."""

    def write(self, text: str) -> int:
        if text.strip():  # `print` writes the end of a line by itself
            _write_to_launcher(f"{text}\n")
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _log_with_levels() -> None:
    """Let fedkd's log begin its lines with their level, from which `launch` takes it, and have those of level INFO."""
    log = logging.getLogger("fedkd")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def server_app(app: Path) -> ServerApp:
    """Return Flower's ServerApp. `app`: the folder of the Flower App."""
    flower_app = ServerApp()

    @flower_app.main()
    def main(grid: Grid, context: Context) -> None:
        from ..runs.progress import Progress
        from ..runs.run_folder import run_folder_of
        from .serve import serve

        os.umask(0o077)  # of this process of Flower: the run folder is for its owner
        run_config = context.run_config
        try:
            config = read_run_config(app, run_config)
            out = str(run_config.get("out", ""))
            if run_config.get("resume", False) and not out:
                raise InputError("--run-config 'resume=true': name the run folder to continue, out=\"runs/...\".")
            folder = Path(out) if out else run_folder_of(config)
            with Progress(cast(TextIO, _InBothLogs()) if LINES in os.environ else sys.stderr) as progress:
                progress.line(f"run folder: {folder.resolve()}")
                summary = serve(
                    grid,
                    config,
                    folder,
                    resume=bool(run_config.get("resume", False)),
                    accept_changes=bool(run_config.get("accept-changes", False)),
                    on_round=progress.update,
                    on_step=progress.step,
                    on_event=progress.line,
                )
                progress.line(f"{summary['status']}: {summary['final']}")
        except Exception as error:
            if LINES in os.environ:
                _write_to_launcher(f"ERROR: the run has failed: {described(error)}\n")
            if isinstance(error, InputError):  # Flower keeps only the text: by its first word run.sh knows its code
                raise InputError(f"refused: {error}") from None
            raise

    return flower_app


def client_app(app: Path) -> ClientApp:
    """Return Flower's ClientApp. `app`: the folder of the Flower App."""
    os.umask(0o077)  # of this process of Flower: a site's state is for its owner
    if LINES in os.environ:
        _log_with_levels()
    return SiteApp(lambda run_config: read_run_config(app, run_config))

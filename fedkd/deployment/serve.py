"""A run over real sites: the server's side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from fedkd.config import Config, difference, read_config, to_table
from fedkd.core.environment import Environment, prepare_as_engine
from fedkd.core.record import Record
from fedkd.errors import InputError
from fedkd.runs.run import make_server, run_with
from fedkd.runs.run_folder import CONFIG, RunFolder, alone_in, refuse_used
from fedkd.runs.trackers import make_trackers

from ..runs import checkpoints
from .roster import ROSTER, Roster


def serve(
    grid: Grid,
    context: Context,
    config: Config,
    path: Path,
    *,
    resume: bool,
    on_round: Callable[[Record, Environment], None] | None = None,
    on_step: Callable[[int, str, int, int], None] | None = None,
    on_event: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a config over a Grid of Flower's, into a new folder, or go on in an old one; return the summary.

    Nodes keep their own states; the server's checkpoint and its roster of sites are in the folder. `on_event` hears
    what happens to sites. Raises like `run`, and InputError where a folder to go on in holds another config.
    """
    folder = RunFolder(path)
    if resume and not (path / ROSTER).is_file():
        raise InputError(f"{path}: there is no run of real sites to continue; its {ROSTER} is missing.")
    if not resume:
        refuse_used(path)
    environment = Environment(config, device=prepare_as_engine(config))
    environment.check()
    trackers = make_trackers(config)
    first_round = 0
    if not resume:
        folder.create(environment.config)
    with alone_in(path):
        if resume:
            begun, wanted = to_table(read_config(path / CONFIG)), to_table(environment.config)
            if (other := difference(begun, wanted, ("rounds",))) is not None:
                raise InputError(f"{path} was begun with another config: {other}.")
            number, checkpoint = checkpoints.latest(folder.checkpoints, on_event or (lambda text: None))
            environment.strategy.restore(checkpoints.load_server(checkpoint))
            folder.rewind(number)
            first_round, roster = number + 1, Roster.read(path / ROSTER, number + 1)
        else:
            roster = Roster(path=path / ROSTER)
            roster.write()
        server = replace(make_server(environment, first_round, on_step), roster=roster)
        server = server if on_event is None else replace(server, on_event=on_event)
        return run_with(grid, context, folder, server, trackers, on_round)

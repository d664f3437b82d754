"""A run with real sites: the server's side."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from ..config import Config, difference, read_config, to_table
from ..core.environment import prepare_as_engine
from ..core.setup import make_setup
from ..core.state import restore_state
from ..errors import InputError
from ..masking import masked
from ..runs import checkpoints
from ..runs.origin import go_on, known_files
from ..runs.run import OnRound, OnStep, origin_in, rounds_with, to_the_end
from ..runs.run_folder import CONFIG, RunFolder, alone_in, refuse_odd_files, refuse_used
from ..runs.trackers import make_trackers
from ..stopping import Stopped, stoppable
from .agreeing import agree, recall
from .roster import ROSTER, Roster
from .site_codec import is_federated
from .sites import Sites


def serve(
    grid: Grid,
    config: Config,
    path: Path,
    *,
    resume: bool,
    accept_changes: bool = False,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    on_event: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run a config over Flower's Grid into a new folder, or continue the run in a folder; return the summary.

    Nodes keep their own states. In the folder are the server's checkpoint, which also has the last accepted request of
    each node, and its roster of sites. A run that ended before its first checkpoint starts again, with this roster.
    `on_event` gets a line about each event of a site. Raises like `run`, and InputError if the folder to continue has
    another config.
    """
    folder = RunFolder(path)
    if resume and not (path / ROSTER).is_file():
        raise InputError(f"{path}: there is no run of real sites to continue; its {ROSTER} is missing.")
    if resume:
        refuse_odd_files(path)
    if not resume:
        refuse_used(path)
    setup = make_setup(config, device=prepare_as_engine(config))
    setup.check()
    trackers = make_trackers(config)
    now = origin_in(setup.environment, known_files(path) if resume else ())
    first_round, states = 0, []
    if not resume:
        folder.create(setup.environment.config, now)
    with alone_in(path):
        if resume:
            begun, wanted = to_table(read_config(path / CONFIG)), masked(to_table(setup.environment.config))
            if (other := difference(begun, wanted, ("rounds", "timeout"))) is not None:
                raise InputError(f"{path} was begun with another config: {other}.")
            number = -1  # it ended before its first checkpoint, and starts again
            if not checkpoints.there_are_none(folder.checkpoints):
                owner = checkpoints.owner_of(setup.environment.config)
                number, checkpoint = checkpoints.latest(folder.checkpoints, on_event, owner)
                restore_state(setup.strategy, checkpoints.load_server(checkpoint))
                states = list(checkpoints.load_nodes(checkpoint))
                checkpoints.drop_newer(checkpoint)
            checkpoints.drop_after(folder.best, number)
            go_on(path, now, number + 1, accept_changes=accept_changes)
            folder.rewind(number)
            first_round, roster = number + 1, Roster.read(path / ROSTER)
            recall(setup, roster, path)
            if accept_changes:
                roster.reported = {}  # what sites report of themselves now counts
        else:
            roster = Roster(path=path / ROSTER)
            roster.write()
        sites = Sites(grid, setup, roster, first_round, on_event)
        sites.restore(states)

        def before_rounds() -> None:
            if is_federated(config) and not roster.codec:
                agree(setup, sites, roster, path, on_event)

        try:
            with stoppable():
                rounds = rounds_with(setup, sites, folder, trackers, first_round, on_step, before_rounds)
                return to_the_end(rounds, on_round)
        except Stopped:
            signal.raise_signal(signal.SIGTERM)  # Flower has handlers of its own, which end its process in order
            raise

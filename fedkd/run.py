"""A run from start to end: environment, engine, strategy, run folder; and how it goes on after a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from . import checkpoints
from .config import Config, NamedTable, difference, read_config, to_table
from .environment import Environment, prepare_as_engine
from .errors import InputError, StatesLost
from .flower import node_context
from .grid import Carrier, SimulationGrid
from .payload import Tensors, copied
from .registry import find, options
from .runfolder import CONFIG, RunFolder, alone_in, refuse_used, summarise, to_line
from .sites import ROSTER, Roster
from .strategy import Record, Server
from .trackers import Trackers, make_trackers

_MOST_ROWS = 1000  # of a heat map
_log = logging.getLogger("fedkd")


def make_server_app(server: Server) -> ServerApp:
    """Return the Flower ServerApp that runs the environment's strategy for as many rounds as its config says."""
    app = ServerApp()
    environment = server.environment

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        environment.strategy.start(grid, ArrayRecord(), environment.config.rounds, server=server)

    return app


def make_engine(environment: Environment) -> SimulationGrid:
    """Return the engine that the config names. Raises InputError for an unknown one or wrong options."""
    name = environment.config.engine.name
    engine = find("engines", name, "engine.name")
    grid: SimulationGrid = engine(environment, **options(engine, environment.config.engine.options, "engine"))
    return grid


def run(
    config: Config,
    out: Path,
    on_round: Callable[[Record, Environment], None] | None = None,
    on_step: Callable[[int, str, int, int], None] | None = None,
    on_event: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run a config into a new folder; return the summary. Nothing is written before all input is accepted.

    `on_round` hears of each round that has ended, `on_step` of long work on the server (see `Server`), `on_event` of
    what the run survives. Raises InputError for input that is refused, RunError for a run that cannot go on; whatever
    ends a run early is written into its summary first.
    """
    refuse_used(out)
    _refuse_sites(config)
    environment = Environment(config)
    environment.check()
    trackers = make_trackers(config)
    with make_engine(environment) as grid:
        folder = RunFolder(out)
        folder.create(environment.config)
        with alone_in(out):
            return _simulate(grid, folder, 0, trackers, on_round, on_step, on_event)


def resume(
    path: Path,
    on_round: Callable[[Record, Environment], None] | None = None,
    on_step: Callable[[int, str, int, int], None] | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    engine: NamedTable | None = None,
) -> dict[str, Any]:
    """Continue the run in a folder from its newest checkpoint that is whole; return the summary.

    Ends with the same metrics and weights as a run that was never interrupted; one that ended before its first
    checkpoint begins again. `on_event` hears of damaged checkpoints. `engine`: another than it began with, which
    changes no result. Raises like `run`, and InputError for a folder
    without a run, or whose checkpoints are all damaged.
    """
    folder = RunFolder(path)
    if not (path / CONFIG).is_file():
        raise InputError(f"--resume {path}: there is no run; its {CONFIG} is missing.")
    config = read_config(path / CONFIG)
    if engine is not None:
        config = config.model_copy(update={"engine": engine})
    _refuse_sites(config)
    environment = Environment(config)
    environment.check()
    trackers = make_trackers(config)
    with alone_in(path), make_engine(environment) as grid:
        first_round = _back_to_checkpoint(grid, folder, on_event)
        return _simulate(grid, folder, first_round, trackers, on_round, on_step, on_event)


def _simulate(
    grid: SimulationGrid,
    folder: RunFolder,
    first_round: int,
    trackers: Trackers,
    on_round: Callable[[Record, Environment], None] | None,
    on_step: Callable[[int, str, int, int], None] | None,
    on_event: Callable[[str], None],
) -> dict[str, Any]:
    """Run to the end; where nodes' states are lost with a machine, again from the last checkpoint, on what is left."""
    data = grid.environment.data
    if data.clients <= _MOST_ROWS:
        folder.keep_partition(data.node_classes, data.label_counts())
    while True:
        environment = grid.environment
        context = node_context(0, environment.data.clients, RecordDict())
        try:
            return _run(grid, context, folder, _server(environment, first_round, on_step), trackers, on_round)
        except StatesLost as error:
            on_event(f"{error} The run goes on from its last checkpoint.")
            grid.environment = Environment(environment.config, environment.data, str(environment.device))
            grid.environment.check()
            first_round = _back_to_checkpoint(grid, folder, on_event)


def _back_to_checkpoint(grid: SimulationGrid, folder: RunFolder, on_event: Callable[[str], None]) -> int:
    """Take the server and the nodes back to the last checkpoint, if there is one; return the round to go on with."""
    number = -1
    if checkpoints.there_are_none(folder.checkpoints):
        grid.restore(())
    else:
        number, checkpoint = checkpoints.latest(folder.checkpoints, on_event)
        grid.environment.strategy.restore(checkpoints.load_server(checkpoint))
        grid.restore(checkpoints.load_nodes(checkpoint))
    folder.rewind(number)
    grid.events()  # of a round that will be run again
    return number + 1


def _refuse_sites(config: Config) -> None:
    if config.data.sites is not None:
        raise InputError("data.sites: there are no images to simulate with; such a config is for `flwr run`.")


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
        server = replace(_server(environment, first_round, on_step), roster=roster)
        server = server if on_event is None else replace(server, on_event=on_event)
        return _run(grid, context, folder, server, trackers, on_round)


def _server(environment: Environment, first_round: int, on_step: Callable[[int, str, int, int], None] | None) -> Server:
    server = Server(environment, first_round=first_round)
    return server if on_step is None else replace(server, on_step=on_step)


def _run(
    grid: Grid,
    context: Context,
    folder: RunFolder,
    server: Server,
    trackers: Trackers,
    on_round: Callable[[Record, Environment], None] | None,
) -> dict[str, Any]:
    environment, config = server.environment, server.environment.config
    begin = time.perf_counter()
    trackers.begin(config, folder.path, server.first_round)
    ended: _Ended | None = None  # the last whole round: the method may have gone on from it when the run is interrupted

    def keep(record: Record) -> None:
        nonlocal ended
        for name, row in record.images.items():
            folder.keep_images(name, record.number, row)
        line = to_line(record)
        folder.append(line)
        trackers.note(line)
        states = grid.states() if isinstance(grid, Carrier) else ()
        ended = _Ended(record.number, copied(environment.strategy.state()), states)
        if on_round is not None:
            on_round(record, environment)

    def checkpoint(number: int) -> None:
        nonlocal ended
        assert ended is not None
        assert ended.number == number
        checkpoints.save(folder.checkpoints, number, ended.server, ended.states, config.checkpoint.keep)
        ended = None

    def end(status: str, error: str | None = None) -> dict[str, Any]:
        if ended is not None:
            try:
                checkpoint(ended.number)
            except (StatesLost, OSError) as failed:  # there is the one before, and what ended the run is to be told
                _log.warning("round %d could not be kept: %s", ended.number, failed)
        seconds = time.perf_counter() - begin
        data = environment.data.fingerprint
        summary = summarise(config, folder.lines(), status=status, seconds=seconds, data=data, error=error)
        folder.write_summary(summary)
        trackers.end(summary)
        return summary

    app = make_server_app(replace(server, on_round=keep, on_checkpoint=checkpoint))
    try:
        app(grid, context)
    except (KeyboardInterrupt, SystemExit):
        end("interrupted")
        raise
    except StatesLost as error:
        ended = None  # its states are among those that are lost
        end("failed", f"{type(error).__name__}: {error}")
        raise
    except Exception as error:
        end("failed", f"{type(error).__name__}: {error}")
        raise
    draw(environment, folder)
    return end("completed")


class _Ended(NamedTuple):
    """What a checkpoint of a round holds."""

    number: int
    server: Tensors
    states: Iterable[tuple[int, RecordDict]]


def draw(environment: Environment, folder: RunFolder) -> list[Path]:
    """Draw the figures of a run; return their paths."""
    from . import figures  # matplotlib, which the run itself can do without

    config = environment.config
    sets = config.data.set_names
    named = ", ".join(sets) if len(sets) < 3 else f"{sets[0]} and {len(sets) - 1} sets more"  # titles are short
    about = f"{config.strategy.name} on {named}, seed {config.seed}"
    curves = figures.draw_curves(folder.lines(), about, folder.figures / "curves.png")
    heat = None  # nobody knows who holds what on real sites
    if config.data.partition is not None and environment.data.clients <= _MOST_ROWS:
        heat = figures.draw_partition(
            environment.data, f"{partition_name(config)}, seed {config.seed}", folder.figures / "partition.png"
        )
    weights = figures.draw_weights(folder.lines(), about, folder.figures / "weights.png")
    ensemble = figures.draw_ensemble(folder.lines(), environment.data.classes, about, folder.figures / "ensemble.png")
    features = figures.draw_features(folder.lines(), environment.data.classes, about, folder.figures / "features.png")
    shown = [figures.draw_images(path, f"{path.name}: {about}") for path in folder.image_folders()]
    return [path for path in (curves, heat, weights, ensemble, features, *shown) if path is not None]


def partition_name(config: Config) -> str:
    """Return the partition in words, such as `dirichlet (clients 20, alpha 0.1)`."""
    partition = config.data.partition
    assert partition is not None, "a run has one"
    return _in_words({"scheme": partition.scheme, **(partition.model_extra or {})})


def _in_words(table: dict[str, Any]) -> str:
    told = [
        f"{key} {_in_words(value) if isinstance(value, dict) else value}"
        for key, value in table.items()
        if key != "scheme"
    ]
    return " ".join([str(table["scheme"]), *([f"({', '.join(told)})"] if told else [])])

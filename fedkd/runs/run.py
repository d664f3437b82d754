"""A run from start to end: environment, engine, strategy, run folder; and its resume after a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import RecordDict

from ..config import Config, NamedTable, difference, read_config, to_table
from ..core.environment import Environment
from ..core.record import Record
from ..core.round_loop import OnStep, each_round
from ..core.setup import Setup, make_setup
from ..core.state import State, restore_state, state_of
from ..core.wrapper import make_strategy
from ..errors import EngineLost, InputError, RunError, StatesLost, described
from ..files import NotWritten, writing
from ..messages.carrier import Carrier, Engine
from ..registry import errors_of, find, options
from ..stopping import stoppable
from . import checkpoints
from .choosing import watchers
from .metrics import summarise, to_line
from .origin import Origin, accepted_changes, go_on, known_files, note_files, origin_of, refuse_changes
from .run_folder import CONFIG, MOST_ROWS, RunFolder, alone_in, refuse_odd_files, refuse_used
from .trackers import Trackers, make_trackers
from .weight_matrices import keep_apart

OnRound = Callable[[Record, Environment], None]
_log = logging.getLogger("fedkd")


def make_engine(setup: Setup) -> Engine:
    """Return the engine that the config names. Raises InputError for an unknown engine or wrong options."""
    table = setup.environment.config.engine
    engine = find("engines", table.name, "engine.name")
    chosen = options(engine, table.options, "engine")
    with errors_of(table.name, "engine.name"):
        made: Engine = engine(setup, **chosen)
    if not isinstance(made, Engine):
        raise InputError(f"engine.name = {table.name!r} makes {type(made).__name__}, not an Engine.")
    return made


class RoundEnd(NamedTuple):
    """A finished round: its record, what the run is made of, and the states of the server and the nodes after it."""

    record: Record
    setup: Setup
    server: State
    states: Iterable[tuple[int, RecordDict]]


Rounds = Generator[RoundEnd, None, dict[str, Any]]


def run(
    config: Config,
    out: Path,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    on_event: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run a config into a new folder; return the summary. Nothing is written before all input is accepted.

    `on_round` is called after each round, `on_step` for the progress of long work on the server (see `each_round`),
    `on_event` with a line about each problem that does not end the run. Raises InputError for input that is refused,
    RunError for a run that cannot continue, `Stopped` after a signal. The reason for an early end is first written to
    the summary.
    """
    return to_the_end(rounds(config, out, on_step, on_event), on_round)


def rounds(
    config: Config, out: Path, on_step: OnStep | None = None, on_event: Callable[[str], None] = lambda text: None
) -> Rounds:
    """Do what `run` does, round by round: yield after each one, return the summary.

    If the generator is closed before its end, the run ends as after Ctrl-C: its last round is kept, and can be resumed.
    """
    with stoppable():
        refuse_used(out)
        _refuse_sites(config)
        setup = make_setup(config)
        setup.check()
        trackers = make_trackers(config)
        with make_engine(setup) as engine:
            folder = RunFolder(out)
            folder.create(setup.environment.config, origin_in(setup.environment))
            with alone_in(out):
                return (yield from _simulate(setup, engine, folder, 0, trackers, on_step, on_event))


def to_the_end(playing: Rounds, on_round: OnRound | None = None) -> dict[str, Any]:
    """Run all rounds, call `on_round` after each, return the summary. What it raises ends the run."""
    while True:
        try:
            ended = next(playing)
        except StopIteration as stop:
            summary: dict[str, Any] = stop.value
            return summary
        try:
            if on_round is not None:
                on_round(ended.record, ended.setup.environment)
        except BaseException as error:
            playing.throw(error)
            raise


def resume(
    path: Path,
    on_round: OnRound | None = None,
    on_step: OnStep | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    engine: NamedTable | None = None,
    overrides: Sequence[str] = (),
    *,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Continue the run in a folder from its newest complete checkpoint; return the summary.

    Metrics and weights are the same as without the interruption. A run that ended before its first checkpoint starts
    again. `on_event` gets a line about each damaged checkpoint. `engine`: another engine than before, for this time
    only. `overrides`: `key=value` of keys that a run may change (`MAY_CHANGE`), which are written to its config.
    `accept_changes`: go on although images, files or versions have changed since the run began, and record it. Raises
    like `run`, and InputError for a folder without a run, for such a change, or if all checkpoints are damaged.
    """
    return to_the_end(resumed(path, on_step, on_event, engine, overrides, accept_changes=accept_changes), on_round)


def resumed(
    path: Path,
    on_step: OnStep | None = None,
    on_event: Callable[[str], None] = lambda text: None,
    engine: NamedTable | None = None,
    overrides: Sequence[str] = (),
    *,
    accept_changes: bool = False,
) -> Rounds:
    """Do what `resume` does, round by round, as `rounds`."""
    with stoppable():
        folder = RunFolder(path)
        if not (path / CONFIG).is_file():
            raise InputError(f"--resume {path}: there is no run; its {CONFIG} is missing.")
        refuse_odd_files(path)
        config = changed = _changed(path, overrides)
        if engine is not None:
            config = config.model_copy(update={"engine": engine})
        _refuse_sites(config)
        setup = make_setup(config)
        setup.check()
        now = origin_in(setup.environment, known_files(path))
        if not accept_changes:
            refuse_changes(path, now)
        trackers = make_trackers(config)
        with alone_in(path), make_engine(setup) as simulation:
            first_round = _back_to_checkpoint(setup, simulation, folder, on_event)
            if config.rounds < first_round - 1:
                raise InputError(f"rounds = {config.rounds}: the run in {path} has done {first_round - 1} already.")
            watchers(config, folder.lines())  # refuses a metric before the config has it
            if overrides:
                folder.change(changed)
            for change in go_on(path, now, first_round, accept_changes=accept_changes):
                on_event(f"accepted, from round {first_round} on: changed is {change}")
            return (yield from _simulate(setup, simulation, folder, first_round, trackers, on_step, on_event))


MAY_CHANGE = (
    "rounds", "evaluate", "stop", "checkpoint", "engine", "trackers", "timeout", "min_replies", "payload_limit",
    "value_limit",
)  # fmt: skip


def _changed(path: Path, overrides: Sequence[str]) -> Config:
    """Return the config of the run in a folder with changes. Raises InputError for a key that it may not change."""
    before = read_config(path / CONFIG)
    after = read_config(path / CONFIG, overrides)
    if (other := difference(to_table(before), to_table(after), MAY_CHANGE)) is not None:
        raise InputError(
            f"--resume {path}: {other}. A run that goes on may change {', '.join(MAY_CHANGE)}, and nothing else: run "
            "the config again in a new folder."
        )
    return after


def origin_in(environment: Environment, known: Iterable[str] = ()) -> Origin:
    """Return what a run in this environment begins with; `known` as in `origin_of`."""
    data = environment.data
    return origin_of(environment.config, data.images_fingerprint, data.fingerprint, known)


def _simulate(
    setup: Setup,
    engine: Engine,
    folder: RunFolder,
    first_round: int,
    trackers: Trackers,
    on_step: OnStep | None,
    on_event: Callable[[str], None],
) -> Rounds:
    """Run to the end. If nodes' states are lost with a machine, resume from the last checkpoint on the other ones."""
    data = setup.environment.data
    for note in data.notes:
        on_event(f"data: {note}")
    for line in setup.environment.about_models():
        if ":" in line.split(": ", 1)[0]:  # a model of the user or of a library, whose head was found
            on_event(line)
    if data.clients <= MOST_ROWS:
        folder.keep_partition(data)
    while True:
        try:
            return (yield from rounds_with(setup, engine, folder, trackers, first_round, on_step))
        except StatesLost as error:
            on_event(f"{error} The run continues from its last checkpoint.")
            fresh, _ = make_strategy(setup.environment.config.strategy)
            setup = Setup(fresh, setup.environment)
            setup.check()
            first_round = _back_to_checkpoint(setup, engine, folder, on_event)


def _back_to_checkpoint(setup: Setup, engine: Engine, folder: RunFolder, on_event: Callable[[str], None]) -> int:
    """Restore the server and the nodes from the last checkpoint, if there is one; return the next round."""
    number = -1
    if checkpoints.there_are_none(folder.checkpoints):
        engine.restore(())
    else:
        owner = checkpoints.owner_of(setup.environment.config)
        number, checkpoint = checkpoints.latest(folder.checkpoints, on_event, owner)
        restore_state(setup.strategy, checkpoints.load_server(checkpoint))
        engine.restore(checkpoints.load_nodes(checkpoint))
        checkpoints.drop_newer(checkpoint)
    checkpoints.drop_after(folder.best, number)
    folder.rewind(number)
    engine.events()  # drops the events of a round that will run again
    return number + 1


def _refuse_sites(config: Config) -> None:
    if config.data.sites is not None:
        raise InputError("data.sites: there are no images to simulate with; such a config is for `flwr run`.")


def rounds_with(
    setup: Setup,
    carrier: Carrier,
    folder: RunFolder,
    trackers: Trackers,
    first_round: int,
    on_step: OnStep | None = None,
    before_rounds: Callable[[], None] = lambda: None,
) -> Rounds:
    """Run the rounds and write to a folder; return the summary, which is written for any end of the run.

    `before_rounds`: is called once, before the strategy has weights.
    """
    environment, config = setup.environment, setup.environment.config
    owner = checkpoints.owner_of(config)
    begin = time.perf_counter()
    earlier = folder.lines()
    before = sum(sum(line["seconds"].values()) for line in earlier)
    trackers.begin(config, folder.path, first_round)
    ended: RoundEnd | None = None  # the last finished round: an interrupt may come during a later round
    best, stop = watchers(config, earlier)

    def keep(record: Record) -> None:
        nonlocal ended
        line = to_line(record)
        for name, row in record.images.items():
            folder.keep_images(name, record.number, row)
        line["log"] = keep_apart(record.log, record.number, folder.path)
        folder.append(line)
        trackers.note(line)
        ended = RoundEnd(record, setup, state_of(setup.strategy), carrier.states())
        if best is not None and best.note(line):
            save(folder.best)
        stop.note(line)

    def save(home: Path) -> None:
        assert ended is not None
        if home == folder.best:
            with writing(home):
                home.mkdir(exist_ok=True)  # not its parents: a run folder that was removed does not come back
        checkpoints.save(home, ended.record.number, ended.server, ended.states, config.checkpoint.keep, owner)

    def end(status: str, error: str | None = None) -> dict[str, Any]:
        if ended is not None:
            try:
                save(folder.checkpoints)
            except RunError as failed:  # an older checkpoint exists, and the first error is more important
                number = ended.record.number
                _log.warning("the checkpoint of round %d could not be written: %s", number, failed)
        seconds = before + time.perf_counter() - begin
        try:
            note_files(folder.path, config)
            origin = origin_in(environment) | {"changes": accepted_changes(folder.path)}
            summary = summarise(config, folder.lines(), status=status, seconds=seconds, origin=origin, error=error)
            if stop.reached is not None:
                summary["stopped_early"] = stop.reached
            if best is not None and best.value is not None:
                summary["best_round"] = {"metric": best.metric, "round": best.round, "value": best.value}
            summary["models"] = environment.about_models()
            summary["data_notes"] = list(environment.data.notes)
            folder.write_summary(summary)
        except (RunError, InputError) as failed:
            if status == "completed":
                raise
            if not isinstance(failed, NotWritten):  # the message of the run's end says what is wrong with the disk
                _log.warning("%s", failed)
            return {}
        if status != "completed":
            trackers.end(summary)
        return summary

    hooks: dict[str, Any] = {} if on_step is None else {"on_step": on_step}
    try:
        before_rounds()
        folder.keep_samples(environment.data)
        if stop.reached is None:
            for record in each_round(setup, carrier, first_round=first_round, **hooks):
                keep(record)
                assert ended is not None
                yield ended
                number = record.number
                if number % config.checkpoint.every == 0 or number == config.rounds or stop.reached is not None:
                    save(folder.checkpoints)
                    ended = None
                if stop.reached is not None:
                    break
    except (KeyboardInterrupt, GeneratorExit):
        end("interrupted")
        raise
    except (EngineLost, StatesLost, NotWritten) as error:
        ended = None  # its states are lost too, or there is no place for them
        end("failed", described(error))
        raise
    except SystemExit as error:
        end("failed", described(error))
        raise RunError(f"{config.strategy.name} has called sys.exit({error.code!r}).") from error
    except BaseException as error:
        end("failed", described(error))
        raise
    summary = end("completed")
    from .evaluation import keep_evaluation
    from .figures import draw  # imports matplotlib, which the run itself does not need

    try:
        problems = keep_evaluation(setup.strategy, environment, carrier.states(), folder)
        for problem in [*problems, *draw(environment, folder)]:
            _log.warning("%s", problem)
    finally:
        trackers.end(summary, _pictures_in(folder.figures))
    return summary


def _pictures_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.png"))
    except OSError as error:  # the run is done, and trackers have its numbers
        _log.warning("the figures cannot be listed: %s", described(error))
        return []

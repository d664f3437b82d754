"""What fedkd promises of its own strategies, checked for anyone's: `check_strategy`; the pytest fixture has its name.

Each promise is one function here; a failure is an AssertionError that names it. `fedkd check FILE:Class` runs them from
the command line.
"""

from __future__ import annotations

import copy
import inspect
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict

from .config import Config, parse_config
from .core.record import Record
from .core.round_loop import run_rounds
from .core.setup import Setup, make_setup
from .core.state import State, pack, restore_state, state_of
from .core.strategy import Strategy
from .data.splits import Pool, Split
from .errors import InputError, RunError
from .messages.arrays import tensors_of
from .messages.flower import error_reply
from .messages.ledger import Sizes, add_sizes, count_bytes, no_bytes
from .runs.run import resume, run
from .simulations.faults import damaged
from .simulations.inline import InlineGrid

ROUNDS = 3
NODES = 4
WORKERS = 2  # of Ray
BAD_NODE, BAD_ROUND = 1, 2  # which node fails, and when
Change = Callable[[Message, Callable[[Message], Message]], Message]  # from a request and who answers it to the reply

TINY: dict[str, Any] = {
    "rounds": ROUNDS,
    "data": {
        "name": "digits",
        "train_per_class": 20,
        "test_per_class": 5,
        "partition": {"scheme": "client_dirichlet", "clients": NODES, "alpha": 0.5, "size": 12},
        "public": {"size": 20, "labelled": True},
        "validation": {"size": 20},
        "node_test": 10,
    },
    "model": {"name": "mlp", "hidden": [8]},
    "train": {"batch_size": 6, "optimizer": {"name": "sgd", "lr": 0.1}},
    "evaluate": {"every": 1},
    "checkpoint": {"every": 1, "keep": ROUNDS + 1},
}
UNEQUAL = [{"name": "mlp", "hidden": [8]}, {"name": "mlp", "hidden": [6, 8]}]  # of one feature width


class Outcome(NamedTuple):
    """What a promise came to: kept, or why not."""

    promise: str
    problem: str | None


def check_strategy(
    strategy: type[Strategy] | str, changes: Mapping[str, Any] | None = None, /, **hyper_parameters: Any
) -> None:
    """Run a strategy on a tiny federation and assert what fedkd promises of its own strategies.

    strategy: a class, or its name as in a config (`path/to/file.py:Class`). changes: keys of the run's config that it
    needs, dotted, such as {"model": {"name": "convnet", "channels": [4]}}. hyper_parameters: small ones keep this fast.
    Raises AssertionError with a line for each promise that is broken, InputError where the strategy is refused.
    """
    broken = [f"{name}: {problem}" for name, problem in outcomes(strategy, changes, **hyper_parameters) if problem]
    if broken:
        raise AssertionError("\n".join(broken))


def outcomes(
    strategy: type[Strategy] | str, changes: Mapping[str, Any] | None = None, /, **hyper_parameters: Any
) -> Iterator[Outcome]:
    """Check promise by promise, and yield what each came to. Raises InputError where the strategy is refused."""
    name = strategy if isinstance(strategy, str) else name_of(strategy)
    if name.rpartition(":")[0].endswith(".py"):
        name = str(Path(name).resolve())  # workers may be in another folder
    config = tiny_config({**(changes or {}), "strategy": {"name": name, **hyper_parameters}})
    make_setup(config).check()
    with tempfile.TemporaryDirectory(prefix="fedkd-check-") as folder:
        home = Path(folder)
        for promise in PROMISES:
            problem = None
            try:
                promise(config, home)
            except (AssertionError, InputError, RunError) as error:
                problem = str(error)
            except Exception as error:  # whatever the strategy raises breaks the promise
                problem = f"{type(error).__name__}: {error}"
            yield Outcome((promise.__doc__ or "").splitlines()[0].rstrip("."), problem)


def tiny_config(changes: Mapping[str, Any]) -> Config:
    """Return the tiny federation's config with dotted keys changed; None deletes a key."""
    return parse_config(merged(TINY, changes))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with dotted keys changed; None deletes a key."""
    table = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *path, last = key.split(".")
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = copy.deepcopy(value)
    return table


def name_of(strategy: type[Strategy]) -> str:
    """Return the name by which a config finds a class: `module:Class` where it is installed, else `file.py:Class`."""
    module = sys.modules.get(strategy.__module__)
    if strategy.__module__.startswith("fedkd.") and getattr(module, strategy.__name__, None) is strategy:
        return f"{strategy.__module__}:{strategy.__name__}"
    try:
        return f"{inspect.getfile(strategy)}:{strategy.__name__}"
    except (OSError, TypeError):
        raise InputError(
            f"{strategy.__name__} is in no file; a strategy that others can run is a class in one."
        ) from None


# The promises


def same_bytes_on_ray(config: Config, home: Path) -> None:
    """The same bytes inline and on Ray."""
    run(config, home / "inline")
    run(_with(config, {"engine": {"name": "ray", "workers": WORKERS}}), home / "ray")
    _equal_runs(home / "inline", home / "ray", "inline and on Ray")


def same_bytes_after_resume(config: Config, home: Path) -> None:
    """The same bytes after a stop and resume."""
    if not (home / "inline").exists():
        run(config, home / "inline")
    shutil.copytree(home / "inline", home / "stopped")
    for number in range(2, ROUNDS + 1):
        shutil.rmtree(home / "stopped" / "checkpoints" / f"round-{number:06d}")
    resume(home / "stopped")
    _equal_runs(home / "inline", home / "stopped", "in one go and after a stop in round 2")


def missing_node(config: Config, home: Path) -> None:
    """A missing node is a named failure, and the run goes on."""
    _one_bad_node(config, _away)


def nan_reply(config: Config, home: Path) -> None:
    """A reply with a NaN is a named failure, and reaches nothing; its node is as if it had been away."""

    def spoil(message: Message, answer: Callable[[Message], Message]) -> Message:
        reply = answer(message)
        if not reply.has_error():
            reply.content = damaged(reply.content, "nan")
        return reply

    server, nodes = _one_bad_node(config, spoil)
    wrong = [path for path, tensor in server.tensors.items() if not _is_finite(tensor)]
    assert not wrong, f"values that are not finite in the state: {', '.join(wrong)}"
    without_server, without_nodes = _one_bad_node(config, _away)
    assert _is_equal(server, without_server), "the server's state is not that of a run in which the node was away"
    assert _is_equal(nodes, without_nodes), "the nodes' states are not those of a run in which the node was away"


def node_with_one_sample(config: Config, home: Path) -> None:
    """A node with one sample takes part, or the run is refused by name before round 1."""
    partition = {"scheme": "fedkd.testing:one_sample", "clients": NODES, "minimum": 1}
    setup = make_setup(_with(config, {"data": {"partition": partition}}))
    try:
        setup.check()
    except InputError:
        return
    _no_failure(_records(setup, InlineGrid(setup)))


def state_comes_back(config: Config, home: Path) -> None:
    """All state is declared, and comes back from a checkpoint."""
    setup = make_setup(config)
    _records(setup, InlineGrid(setup))
    kept = state_of(setup.strategy)
    written = State(kept.tensors, json.loads(json.dumps(kept.form)))
    fresh = make_setup(config).strategy
    restore_state(fresh, written)
    again = state_of(fresh)
    assert again.form == kept.form, "another form of state comes back"
    wrong = [path for path, tensor in kept.tensors.items() if not torch.equal(tensor, again.tensors[path])]
    assert not wrong, f"other values come back of {', '.join(wrong)}"


def bytes_are_counted(config: Config, home: Path) -> None:
    """Every byte is counted that crosses."""
    setup = make_setup(config)
    carried = no_bytes()
    records = _records(setup, _CountingGrid(setup, carried))
    ledger = no_bytes()
    for record in records:
        for sizes in (record.bytes, record.evaluation_bytes):
            for way in ("up", "down"):
                add_sizes(ledger[way], sizes[way])
    assert ledger == carried, f"the ledger says {ledger}, carried was {carried}"


def unequal_models(config: Config, home: Path) -> None:
    """Unequal models are accepted or refused as declared."""
    setup = make_setup(_with(config, {"model": {"names": UNEQUAL}}))
    if setup.strategy.equal_models:
        try:
            setup.check()
        except InputError:
            return
        raise AssertionError("equal_models is true, and a config with two architectures is not refused")
    setup.check()
    _no_failure(_records(setup, InlineGrid(setup)))


PROMISES: tuple[Callable[[Config, Path], None], ...] = (
    same_bytes_on_ray,
    same_bytes_after_resume,
    missing_node,
    nan_reply,
    node_with_one_sample,
    state_comes_back,
    bytes_are_counted,
    unequal_models,
)


def one_sample(pool: Pool, rng: np.random.Generator, *, clients: int) -> Split:
    """Deal the images evenly, but the last node gets one: a partition for tests."""
    order = rng.permutation(len(pool.labels))[: 12 * (clients - 1) + 1]
    return Split([np.sort(order[12 * node : 12 * (node + 1)]) for node in range(clients)])


# What they share


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    table = config.model_dump(mode="json", exclude_none=True)
    for key, value in changes.items():
        table[key] = {**table[key], **value} if key == "data" else value
    return parse_config(table)


def _records(setup: Setup, engine: InlineGrid) -> list[Record]:
    """Return the records of a run that leaves no folder."""
    setup.check()
    records: list[Record] = []
    with engine:
        run_rounds(setup, engine, on_round=records.append)
    return records


def _no_failure(records: list[Record]) -> None:
    for record in records:
        assert not record.failures, f"round {record.number}: {record.failures[0]}"


class _BadNodeGrid(InlineGrid):
    """The inline engine, with one node's answers in one round changed."""

    def __init__(self, setup: Setup, change: Change) -> None:
        super().__init__(setup)
        self._change = change
        self.changed: list[str] = []

    def _call(self, message: Message) -> Message:
        action = message.metadata.message_type.removeprefix("train.")
        where = (message.metadata.dst_node_id, int(message.metadata.group_id))
        if where != (BAD_NODE, BAD_ROUND) or action == "evaluate":
            return super()._call(message)
        self.changed.append(action)
        return self._change(message, super()._call)


def _away(message: Message, answer: Callable[[Message], Message]) -> Message:
    return error_reply(message, "is away")


def _one_bad_node(config: Config, change: Change) -> tuple[State, State]:
    """Run with one bad node; return the states of the server and of the nodes at the end."""
    setup = make_setup(config)
    engine = _BadNodeGrid(setup, change)
    records = _records(setup, engine)
    for record in records:
        found = [(failure["node"], failure["action"]) for failure in record.failures]
        right = [(BAD_NODE, action) for action in engine.changed] if record.number == BAD_ROUND else []
        others = [failure for failure in record.failures if (failure["node"], failure["action"]) not in right]
        assert not others, f"round {record.number}: {others[0]}"
        missed = [action for node, action in right if (node, action) not in found]
        assert not missed, f"round {record.number}: the bad reply to {missed[0]!r} is no failure of its node"
    return state_of(setup.strategy), _state_of_nodes(engine)


class _CountingGrid(InlineGrid):
    """The inline engine, which counts by itself what it carries."""

    def __init__(self, setup: Setup, carried: Sizes) -> None:
        super().__init__(setup)
        self._carried = carried

    def _call(self, message: Message) -> Message:
        add_sizes(self._carried["down"], count_bytes(message.content))
        reply = super()._call(message)
        if not reply.has_error():
            add_sizes(self._carried["up"], count_bytes(reply.content))
        return reply


def _equal_runs(one: Path, other: Path, how: str) -> None:
    ours, theirs = _lines(one), _lines(other)
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        wrong = [key for key in left if left[key] != right[key]]
        assert not wrong, f"round {number} differs {how}: {wrong[0]} is {left[wrong[0]]} and {right[wrong[0]]}"
    files, others = _checkpoint(one), _checkpoint(other)
    wrong = [name for name in files.keys() | others.keys() if files.get(name) != others.get(name)]
    assert not wrong, f"the last checkpoint differs {how}: {wrong[0]}"


def _lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def _checkpoint(folder: Path) -> dict[str, bytes]:
    newest = max((folder / "checkpoints").glob("round-*"))
    return {str(path.relative_to(newest)): path.read_bytes() for path in newest.rglob("*") if path.is_file()}


def _state_of_nodes(engine: InlineGrid) -> State:
    def plain(state: RecordDict) -> dict[str, Any]:
        return {key: tensors_of(r) if isinstance(r, ArrayRecord) else dict(r) for key, r in state.items()}

    return pack({node: plain(state) for node, state in engine.states()}, "the nodes' states")


def _is_equal(one: State, other: State) -> bool:
    return one.form == other.form and all(torch.equal(one.tensors[path], other.tensors[path]) for path in one.tensors)


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())

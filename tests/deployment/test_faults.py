"""What breaks at one message of a short run with real sites: its reply, its client, the site's disk."""

from __future__ import annotations

import datetime
import errno
import io
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.app.message import message as flower
from helpers import Make, checkpoint_bytes, lines
from helpers.federations import IDS, partitioned, start
from helpers.loopback import Clock, Loopback

from fedkd import RunError
from fedkd.config import Config
from fedkd.core import client_app
from fedkd.deployment.site_state import requests_on_disk
from fedkd.messages.flower import error_reply
from fedkd.runs import checkpoints, figures

SHORT: dict[str, Any] = {
    "rounds": 2, "timeout": 10.0, "checkpoint": {"every": 1, "keep": 1}, "strategy": {"name": "scaffold"},
    "data.partition": {"scheme": "iid", "clients": 3}, "data.train_per_class": 4, "data.test_per_class": 2,
    "data.node_test": 5, "model.hidden": [4],
}  # fmt: skip
MESSAGES = 18  # to each of three sites: introduction, metrics, fit, metrics, fit, metrics
JOINS, FITS, LATER = range(3), [6, 7, 8, 12, 13, 14], range(9, 18)
Fault = Callable[[Loopback, int, Clock], None]


# The faults


def lost(grid: Loopback, number: int, clock: Clock) -> None:
    grid.held = lambda message, site: message.metadata.message_id == str(number)


def late(grid: Loopback, number: int, clock: Clock) -> None:
    until: list[float] = []

    def held(message: Message, site: dict[str, Any]) -> bool:
        if message.metadata.message_id != str(number):
            return False
        until[:] = until or [clock.now + 12]  # two seconds into the next request
        return clock.now < until[0]

    grid.held = held


def twice(grid: Loopback, number: int, clock: Clock) -> None:
    """The site works on the request twice, and both replies arrive."""
    app, pull = grid.app, grid.pull_messages

    def again(message: Message, context: Any) -> Message:
        first = app(message, context)
        return app(message, context) if message.metadata.message_id == str(number) else first

    def pull_twice(ids: Iterable[str]) -> list[Message]:
        wanted = list(ids)
        return pull(wanted) * 2 if wanted == [str(number)] else pull(wanted)

    grid.app, grid.pull_messages = again, pull_twice  # type: ignore[assignment, method-assign]


def with_the_reply_to(is_other: Callable[[Message, Message], bool]) -> Fault:
    """Answer with the newest reply to an earlier message: `is_other(earlier, message)`."""

    def fault(grid: Loopback, number: int, clock: Clock) -> None:
        earlier: list[tuple[Message, Message]] = []

        def tampered(message: Message, reply: Message) -> Message:
            others = [kept for one, kept in earlier if is_other(one, message)]
            # the server changes what it gets
            earlier.append((message, Message(RecordDict(dict(reply.content)), reply_to=message)))
            return others[-1] if message.metadata.message_id == str(number) and others else reply

        grid.tampered = tampered

    return fault


def same_node(one: Message, other: Message) -> bool:
    return one.metadata.dst_node_id == other.metadata.dst_node_id


def same_action(one: Message, other: Message) -> bool:
    return one.metadata.message_type == other.metadata.message_type


def in_the_client(error: Exception) -> Fault:
    """Raise an error in the client, when it has done its work and kept its new state."""

    def fault(grid: Loopback, number: int, clock: Clock) -> None:
        app, call = grid.app, client_app._call

        def then_raise(*args: Any) -> Any:
            call(*args)
            raise error

        def with_error(message: Message, context: Any) -> Message:
            if message.metadata.message_id != str(number):
                return app(message, context)
            with mock.patch.object(client_app, "_call", then_raise):
                return app(message, context)

        grid.app = with_error  # type: ignore[assignment]

    return fault


def at_the_disk(number_of_error: int, *, restarted: bool = False) -> Fault:
    """Let no file be opened while a site answers; `restarted`: it first forgets what is not on its disk."""

    def fault(grid: Loopback, number: int, clock: Clock) -> None:
        app = grid.app

        def refuse(path: Any, *args: Any, **more: Any) -> Any:
            raise OSError(number_of_error, os.strerror(number_of_error), str(path))

        def without_files(message: Message, context: Any) -> Message:
            if message.metadata.message_id != str(number):
                return app(message, context)
            if restarted:
                context.state = RecordDict()
            with (
                mock.patch.object(io, "open", refuse),
                mock.patch.object(os, "open", refuse),
                mock.patch.object(checkpoints, "safe_open", refuse),
            ):
                return app(message, context)

        grid.app = without_files  # type: ignore[assignment]

    return fault


def with_a_clock_set_by(days: int) -> Fault:
    """Set the site's clock when it answers."""

    def fault(grid: Loopback, number: int, clock: Clock) -> None:
        app, now = grid.app, flower.now

        def on_another_day(message: Message, context: Any) -> Message:
            if int(message.metadata.message_id) < number:
                return app(message, context)
            with mock.patch.object(flower, "now", side_effect=lambda: now() + datetime.timedelta(days=days)):
                return app(message, context)

        grid.app = on_another_day  # type: ignore[assignment]

    return fault


class Case(NamedTuple):
    """A fault, and the messages at which it is one."""

    fault: Fault
    seen_at: Iterable[int]


CASES = {
    "lost": Case(lost, range(MESSAGES)),
    "late": Case(late, range(MESSAGES)),
    "twice": Case(twice, []),
    "of another request": Case(with_the_reply_to(same_node), range(3, MESSAGES)),
    "of another round": Case(with_the_reply_to(lambda a, b: same_node(a, b) and same_action(a, b)), LATER),
    "of another node": Case(
        with_the_reply_to(lambda a, b: not same_node(a, b) and same_action(a, b)), [1, 2, 4, 5, 7, 8, *LATER]
    ),
    "open files": Case(in_the_client(OSError(errno.EMFILE, "Too many open files", "/x/a.npz")), range(3, MESSAGES)),
    "memory": Case(in_the_client(MemoryError()), range(3, MESSAGES)),
    "torch's memory": Case(in_the_client(torch.OutOfMemoryError("a GPU is\nfull " * 99)), range(3, MESSAGES)),
    "the site's open files": Case(at_the_disk(errno.EMFILE), [*JOINS, *FITS]),
    "a restart and open files": Case(at_the_disk(errno.EMFILE, restarted=True), [*JOINS, *FITS, *LATER]),
    "a restart and memory": Case(at_the_disk(errno.ENOMEM, restarted=True), [*JOINS, *FITS, *LATER]),
    "a restart and the disk": Case(at_the_disk(errno.EIO, restarted=True), [*JOINS, *FITS, *LATER]),
    "a clock a day back": Case(with_a_clock_set_by(-1), []),
    "a clock a day on": Case(with_a_clock_set_by(1), []),
}
ALIKE = (
    "memory",
    "torch's memory",
    "a restart and memory",
    "a restart and the disk",
    "a clock a day back",
)  # where one message is enough
FAST = {name: [13] for name in CASES} | {"lost": [1, 13], "a restart and memory": [16], "a restart and the disk": [16]}


# What a run leaves


def federation(config: Config, home: Path, run: int = 7) -> Loopback:
    """Return three sites that keep their states below a folder."""
    grid = partitioned(config, run=run)
    for n, site in enumerate(grid.sites.values()):
        site["state"] = str(home / f"state-{n}")
    return grid


def end_of(home: Path) -> tuple[Any, ...]:
    """Return what was measured, the server's state, and the state of each site that counts."""
    measured = [
        {key: line[key] for key in ("round", "cohort", "metrics", "nodes", "log")} for line in lines(home / "run")
    ]
    states = {}
    for node, record in checkpoints.load_nodes(checkpoints.latest(home / "run/checkpoints")[1]):
        (folder,) = (one for one in (home / f"state-{node}").iterdir() if one.is_dir())
        counts = str(record.config_records["round"]["accepted"])
        newest = max(request for request in requests_on_disk(folder) if request <= counts)
        states[node] = (folder / f"round-{newest}.safetensors").read_bytes()
    return measured, checkpoint_bytes(home / "run")["server.safetensors"], states


Refused = list[tuple[int, int, str]]


def refused_in(folder: Path) -> Refused:
    return [(line["round"], f["node"], f["action"]) for line in lines(folder) for f in line["failures"]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    monkeypatch.setattr(figures, "draw", lambda environment, folder: [])
    return clock


@pytest.fixture(scope="module")
def honest(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Refused], Any]]:
    """Return a function: the end of a run in which nothing is broken, and nodes report an error at some requests."""

    @cache
    def end(refused: frozenset[tuple[int, int, str]]) -> Any:
        config, home = tiny(SHORT), tmp_path_factory.mktemp("honest")
        grid = federation(config, home)

        def tampered(message: Message, reply: Message) -> Message:
            about = message.metadata
            which = (int(about.group_id), IDS.index(about.dst_node_id), about.message_type.removeprefix("train."))
            return error_reply(message, "an error") if which in refused else reply

        grid.tampered = tampered
        start(config, grid, home / "run")
        assert len(grid.sent) == MESSAGES
        assert set(refused_in(home / "run")) == refused
        return end_of(home)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda environment, folder: [])
        yield lambda refused: end(frozenset(refused))


@pytest.mark.parametrize(
    ("name", "numbers", "least"),
    [
        *((name, FAST[name], 1) for name in CASES),
        *(pytest.param(name, range(MESSAGES), 1, marks=pytest.mark.slow) for name in CASES if name not in ALIKE),
        pytest.param("lost", range(MESSAGES), 3, marks=pytest.mark.slow),  # the run ends and is resumed
    ],
)
def test_what_breaks_at_a_message_is_a_failure_of_its_site_or_the_run_goes_on_later(
    tiny: Make, tmp_path: Path, clock: Clock, honest: Callable[[Refused], Any],
    name: str, numbers: Iterable[int], least: int,
) -> None:  # fmt: skip
    config, case = tiny({**SHORT, "min_replies": least}), CASES[name]
    for number in numbers:
        home = tmp_path / str(number)
        grid = federation(config, home)
        case.fault(grid, number, clock)
        ended = ""
        try:
            start(config, grid, home / "run")
        except RunError as error:
            ended = str(error)
        if ended:
            assert number in case.seen_at
            assert "of 3 " in ended
            assert ended.isprintable()
            assert len(ended) < 600
            start(config, federation(config, home, run=8), home / "run", resume=True)
        else:
            assert number not in JOINS or number not in case.seen_at
            about = grid.sent[number].metadata
            which = (int(about.group_id), IDS.index(about.dst_node_id), about.message_type.removeprefix("train."))
            assert refused_in(home / "run")[:1] == ([which] if number in case.seen_at else []), number
            assert {node for _, node, _ in refused_in(home / "run")} <= {which[1]}
        reasons = [failure["reason"] for line in lines(home / "run") for failure in line["failures"]]
        assert all(reason.isprintable() and len(reason) < 500 for reason in reasons)
        assert end_of(home) == honest(refused_in(home / "run")), number

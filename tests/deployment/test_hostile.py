"""One hostile site among honest ones: each trick fails, costs nobody else anything, and is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MetricRecord
from helpers import Make, checkpoint_bytes, lines
from helpers.federations import IDS, failures, partitioned, start
from helpers.loopback import Clock, Loopback
from helpers.tricks import TRICKS

from fedkd import RunError
from fedkd.deployment.introduction import Introduction
from fedkd.deployment.roster import is_the_servers, looks_like
from fedkd.messages.flower import error_reply

HOSTILE = 3


@pytest.mark.parametrize("name", TRICKS)
def test_the_honest_model_is_the_one_without_the_hostile_sites_replies(tiny: Make, tmp_path: Path, name: str) -> None:
    config = tiny({"rounds": 2, "payload_limit": 10**7, "evaluate.every": 2})
    without, grid = partitioned(config), partitioned(config)

    def silent(message: Message, reply: Message) -> Message:
        hostile = message.metadata.dst_node_id == IDS[HOSTILE] and message.metadata.message_type == "train.fit"
        return error_reply(message, "nothing") if hostile else reply

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == IDS[HOSTILE] and message.metadata.message_type == "train.fit":
            TRICKS[name](reply.content)
        return reply

    without.tampered, grid.tampered = silent, tampered
    start(config, without, tmp_path / "without")
    start(config, grid, tmp_path / "run")
    ours, theirs = lines(tmp_path / "run"), lines(tmp_path / "without")
    assert [line["metrics"] for line in ours] == [line["metrics"] for line in theirs]
    assert [line["log"] for line in ours] == [line["log"] for line in theirs]
    models = [checkpoint_bytes(tmp_path / run)["server.safetensors"] for run in ("run", "without")]
    assert models[0] == models[1]
    found = failures(tmp_path / "run")
    assert [reason.split(":")[0] for reason in found] == [f"{number} {HOSTILE} fit" for number in (1, 2)]
    assert all(len(reason) < 500 and reason.isprintable() for reason in found)


def test_metrics_of_a_round_that_is_not_measured_are_refused(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 3, "evaluate.every": 3, "strategy": {"name": "weight_ema", "base": {"name": "fedavg"}}})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == IDS[HOSTILE] and message.metadata.message_type == "train.fit":
            name = "latest/accuracy" if message.metadata.group_id == "3" else "personal_after_fit/accuracy"
            reply.content["report"] = MetricRecord({name: 1.0})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    asked = "metric 'personal_after_fit/accuracy' was not asked for in this round"
    assert failures(tmp_path / "run") == [
        f"1 3 fit: bad reply: {asked}",
        f"2 3 fit: bad reply: {asked}",
        "3 3 fit: bad reply: metric 'latest/accuracy' may only be reported by the server",
    ]
    assert [line["metrics"] == {} for line in lines(tmp_path / "run")] == [False, True, True, False]


# What a site claims


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    return clock


def reporting(grid: Loopback, **changes: float) -> None:
    """Let the hostile site report other numbers of itself once it has been started anew."""

    def tampered(message: Message, reply: Message) -> Message:
        again = message.metadata.dst_node_id == IDS[HOSTILE] and grid.starts[IDS[HOSTILE]] > 1
        if again and message.metadata.message_type == "query.join":
            reply.content["numbers"] = MetricRecord({**reply.content["numbers"], **changes})  # type: ignore[dict-item]
        return reply

    grid.tampered = tampered


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": 2.0**31 - 1}, "it reported 24 training images at the first contact, and 2147483647 now"),
        ({"images": 23.0}, "it reported 24 training images at the first contact, and 23 now"),
        ({"images": 23.5}, "number 'images' is not whole"),
        ({"height": 9.0}, "it has other classes, or another image shape, than at the first contact"),
        ({"partition": 1.0}, "has partition-id = 1"),
    ],
)
def test_what_a_site_has_reported_counts(
    tiny: Make, tmp_path: Path, clock: Clock, changes: dict[str, float], reason: str
) -> None:
    config = tiny({"rounds": 3, "evaluate.every": 9, "timeout": 20.0})
    grid = partitioned(config)
    reporting(grid, **changes)

    def restart(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.restart(IDS[HOSTILE])

    start(config, grid, tmp_path / "run", on_round=restart)
    events = [event["event"] for line in lines(tmp_path / "run") for event in line["events"]]
    assert any("refused" in event and reason in event for event in events), events
    assert {reason.split(":")[0] for reason in failures(tmp_path / "run")} == {"2 3 fit", "3 3 fit", "3 3 evaluate"}


def test_an_operator_may_accept_what_has_changed(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 2, "evaluate.every": 9, "timeout": 20.0, "checkpoint.every": 1})
    grid = partitioned(config)
    start(config, grid, tmp_path / "run")
    longer = config.model_copy(update={"rounds": 3})
    grid = partitioned(longer)
    grid.starts[IDS[HOSTILE]] = 2
    reporting(grid, images=25.0)
    start(longer, grid, tmp_path / "run", resume=True, accept_changes=True)
    events = [event["event"] for line in lines(tmp_path / "run") for event in line["events"]]
    assert "is back: 25 training images" in events


def test_a_name_goes_with_the_key_that_was_registered_under_it(tiny: Make, tmp_path: Path, clock: Clock) -> None:
    config = tiny({"rounds": 1, "evaluate.every": 9, "timeout": 20.0})
    names = {id: f"site-{node}" for node, id in enumerate(IDS)}
    grid = Loopback(config, {id: {"partition-id": node, "name": names[id]} for node, id in enumerate(IDS)})
    grid.sites[IDS[0]]["name"] = "site-1"
    nodes = grid.get_nodes
    grid.get_nodes = lambda: [_named(node, names) for node in nodes()]  # type: ignore[method-assign]
    with pytest.raises(RunError, match="site-1 refused: its key was registered under the name 'site-0'"):
        start(config, grid, tmp_path / "run")


def _named(node: Any, names: dict[int, str]) -> Any:
    node.name = names[node.node_id]
    return node


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("site-1", "Site-1"), ("site-1", "site_1"), ("site-1", "site 1"), ("site-1", "site-l"), ("site-1", "s1te-I"),
        ("ward-0", "ward-O"), ("a.b", "a--b"), ("north", "NORTH."),
    ],
)  # fmt: skip
def test_names_that_people_take_for_each_other_look_alike(one: str, other: str) -> None:
    assert looks_like(one) == looks_like(other)


def test_names_that_differ_do_not() -> None:
    names = ["site-1", "site-2", "site-11", "site-1-1", "site1", "ward-a", "ward-b", "st-mary", "st-martin"]
    assert len({looks_like(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "0", "12", "total", "mean", "NaN", "all", "server", "Server", "SERVER-1", "superlink", "SuperNode 11", "g1obal",
        "fedkd", "node-3", "Node 12", "n0de_4",
    ],
)  # fmt: skip
def test_no_site_is_called_like_the_server(name: str) -> None:
    assert is_the_servers(name)


@pytest.mark.parametrize("name", ["central-hospital", "globalcare", "server-room", "node-a", "site-1", "nodes-1"])
def test_other_names_are_free(name: str) -> None:
    assert not is_the_servers(name)


# What a site can cost the others


def test_a_site_that_starts_again_and_again_is_waited_for_a_minute_in_all(
    tiny: Make, tmp_path: Path, clock: Clock
) -> None:
    config = tiny({"rounds": 6, "evaluate.every": 9})
    grid = partitioned(config)
    joined = {"done": False}
    grid.held = lambda message, node: (
        joined["done"] and node["partition-id"] == HOSTILE and message.metadata.message_type == "query.join"
    )
    nodes = grid.get_nodes

    def restless() -> Any:
        if joined["done"] and int(clock.now * 4) % 200 == 0:  # each 50 s, within the patience for one start
            grid.starts[IDS[HOSTILE]] += 1
        return nodes()

    grid.get_nodes = restless  # type: ignore[method-assign]

    def after(record: Any, environment: Any) -> None:
        if record.number == 1 and not joined["done"]:
            joined["done"] = True
            grid.restart(IDS[HOSTILE])

    begin = clock.now
    start(config, grid, tmp_path / "run", on_round=after)
    assert clock.now - begin < 70
    events = [event["event"] for line in lines(tmp_path / "run") for event in line["events"]]
    assert events.count("not waited for: no introduction within 60 s in all") == 1


def test_a_reply_that_is_sent_slowly_holds_nobody_up(
    tiny: Make, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server fetches it beside its other work, and the time limit counts."""
    import threading

    monkeypatch.setattr("fedkd.deployment.sites._PULL_SECONDS", 0.05)
    config = tiny({"rounds": 2, "evaluate.every": 9, "timeout": 10.0})
    grid = partitioned(config)
    never, pull = threading.Event(), grid.pull_messages
    slow = {
        "ids": lambda: [
            str(n)
            for n, m in enumerate(grid.sent)
            if m.metadata.dst_node_id == IDS[HOSTILE] and m.metadata.message_type == "train.fit"
        ]
    }

    def pulled(message_ids: Any) -> Any:
        ids = list(message_ids)
        if set(ids) & set(slow["ids"]()):
            never.wait(30)
            return []
        return pull(ids)

    grid.pull_messages = pulled  # type: ignore[method-assign]
    start(config, grid, tmp_path / "run")
    never.set()
    assert failures(tmp_path / "run")[0] == "1 3 fit: no reply within 10 s"
    assert {reason.split()[1] for reason in failures(tmp_path / "run")} == {str(HOSTILE)}


def test_an_introduction_is_told_apart_by_what_it_reports() -> None:
    one = Introduction("a", 0, "", 5, 2, ("x", "y"), (1, 8, 8), "1", ())
    assert one.reported == Introduction("b", 1, "mlp", 5, 9, ("x", "y"), (1, 8, 8), "2", ("r",)).reported
    assert one.reported != Introduction("a", 0, "", 5, 2, ("y", "x"), (1, 8, 8), "1", ()).reported
    assert one.reported != Introduction("a", 0, "", 6, 2, ("x", "y"), (1, 8, 8), "1", ()).reported

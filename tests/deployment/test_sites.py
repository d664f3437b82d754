"""Sites that are slow, leave, restart or come back, and replies that never come."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from helpers import Make, lines
from helpers.federations import IDS, after_round, events, failures, metrics_of, partitioned, start
from helpers.loopback import Clock

from fedkd import RunError
from fedkd.messages.flower import error_reply
from fedkd.runs.run import run


def test_a_late_reply_is_dropped_and_named_and_its_site_is_asked_nothing_before(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"timeout": 10.0, "rounds": 4, "evaluate.every": 9})
    grid = partitioned(config)
    until: dict[str, float] = {}

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        slow = node_config["partition-id"] == 3 and message.metadata.group_id == "2"
        return slow and clock.now < until.setdefault(message.metadata.message_id, clock.now + 25)

    grid.held = held
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == [
        "2 3 fit: no reply within 10 s",
        "3 3 fit: no reply within 10 s; it is still at 'fit' of round 2",
    ]
    late = [event for line in lines(tmp_path / "run") for event in line["events"] if "late" in event["event"]]
    assert [(event["node"], event["event"]) for event in late] == [(3, "late reply to 'fit' of round 2, dropped")]
    assert late[0]["bytes"] > 1000
    asked = [
        m.metadata.group_id for m in grid.sent if m.metadata.dst_node_id == IDS[3] and "fit" in m.metadata.message_type
    ]
    assert asked == ["1", "2", "4"]  # it got no request while it was at another
    assert lines(tmp_path / "run")[4]["failures"] == []


def test_too_few_replies_end_the_run_and_keep_what_there_is(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    config = tiny({"timeout": 10.0, "rounds": 3, "min_replies": 6, "checkpoint.every": 1})
    grid = partitioned(config)
    grid.held = lambda message, node: (
        node["partition-id"] == 1
        and message.metadata.message_type == "train.fit"
        and (message.metadata.group_id == "2")
    )
    with pytest.raises(RunError, match="5 of 6 replies are good, min_replies is 6. node 1: no reply within 10 s"):
        start(config, grid, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("failed", 1)
    grid = partitioned(config, run=8)
    start(config, grid, tmp_path / "run", resume=True)
    run(config, tmp_path / "simulated")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "simulated")


def test_a_site_that_leaves_fails_by_name_and_takes_part_when_it_is_back(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 4, "strategy": {"name": "scaffold"}})
    grid = partitioned(config)

    def on_round(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.online.discard(IDS[2])
        if record.number == 2:
            grid.online.add(IDS[2])
            grid.restart(IDS[2])

    start(config, grid, tmp_path / "run", on_round=on_round)
    assert failures(tmp_path / "run") == ["2 2 fit: is not connected", "2 2 evaluate: is not connected"]
    assert events(tmp_path / "run")[6:] == [
        "3 partition-2: is back: 24 training images",
        "3 partition-2: its state was lost; it starts afresh",
    ]
    assert lines(tmp_path / "run")[3]["metrics"]["personal/accuracy"] > 0


def test_the_version_of_a_site_is_looked_at_when_it_introduces_itself(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    monkeypatch.setattr("fedkd.deployment.sites.version", lambda name: "0.1.2")
    versions = iter(("0.1.0", "0.2.0", "0.1.9", "1.0.0", "0.1.2", "0.1.3"))
    monkeypatch.setattr("fedkd.deployment.on_site.version", lambda name: next(versions))
    config = tiny({"rounds": 1, "timeout": 5.0})
    heard: list[str] = []
    with pytest.raises(RunError, match=re.escape("4 of 6 sites are here after 5 s. ")) as error:
        start(config, partitioned(config), tmp_path / "run", on_event=heard.append)
    reasons = [text for text in heard if "refused" in text]
    assert len(reasons) == 2
    assert all("the server 0.1.2; install any 0.1.x at the site" in text for text in reasons)
    assert {text.split(": refused: ")[1].split(",")[0] for text in reasons} == {
        "it runs fedkd 0.2.0",
        "it runs fedkd 1.0.0",
    }
    assert all(text.startswith("partition-") and text.split(": ")[0] in str(error.value) for text in reasons)


def test_a_supernode_that_stops_during_a_request_is_a_failure_with_the_reason(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 2, "evaluate.every": 9})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if (message.metadata.dst_node_id, message.metadata.group_id) != (IDS[2], "1"):
            return reply
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)  # as the SuperLink does

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == [
        "1 2 fit: its SuperNode has stopped during the request, or has given no sign of life for a minute"
    ]


def test_a_request_that_a_restart_swallowed_does_not_hold_the_round_up(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"rounds": 3, "evaluate.every": 9})  # no timeout: it would wait for ever
    grid = partitioned(config)
    seen: list[Message] = []

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        if node_config["partition-id"] == 4 and message.metadata.group_id == "2" and not seen:
            seen.append(message)
            grid.starts[IDS[4]] += 1
            return True
        return message in seen

    grid.held = held
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["2 4 fit: its SuperNode was started anew during the request"]
    assert lines(tmp_path / "run")[3]["failures"] == []


def test_a_site_that_restarts_while_it_is_late_is_asked_again(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    config = tiny({"timeout": 10.0, "rounds": 4, "evaluate.every": 9})
    grid = partitioned(config)
    grid.held = lambda message, node: (
        node["partition-id"] == 3
        and message.metadata.group_id == "2"
        and (message.metadata.message_type == "train.fit")
    )
    start(config, grid, tmp_path / "run", on_round=after_round(2, lambda: grid.restart(IDS[3])))
    assert failures(tmp_path / "run") == ["2 3 fit: no reply within 10 s"]


def test_a_reply_that_never_comes_is_given_up(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"timeout": 10.0, "rounds": 10, "evaluate.every": 99})
    grid = partitioned(config)
    sent: dict[str, float] = {}

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        if node_config["partition-id"] != 3 or message.metadata.group_id != "2":
            return False
        assert message.metadata.ttl == 60
        return clock.now < sent.setdefault(message.metadata.message_id, clock.now) + message.metadata.ttl

    grid.held = held
    grid.tampered = lambda message, reply: (
        error_reply(message, "expired")
        if message.metadata.dst_node_id == IDS[3] and message.metadata.group_id == "2"
        else reply
    )
    start(config, grid, tmp_path / "run")
    found = failures(tmp_path / "run")
    assert len(found) == 10  # three rounds have waited for it; the others only say that it is left out
    assert [("left out" in failure) for failure in found] == [False] * 3 + [True] * 7
    assert clock.now < 45
    assert any("partition-3: left out: it has missed the time limit" in event for event in events(tmp_path / "run"))


def test_a_late_reply_that_is_given_up_leaves_its_site_free(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"timeout": 10.0, "rounds": 4, "evaluate.every": 99})
    grid = partitioned(config)
    until: dict[str, float] = {}

    def of_round_2(message: Message) -> bool:
        return message.metadata.dst_node_id == IDS[3] and message.metadata.group_id == "2"

    grid.held = lambda message, node: (
        of_round_2(message) and clock.now < until.setdefault(message.metadata.message_id, clock.now + 15)
    )
    grid.tampered = lambda message, reply: error_reply(message, "expired") if of_round_2(message) else reply
    start(config, grid, tmp_path / "run")
    assert events(tmp_path / "run")[-1].endswith("partition-3: no reply to 'fit' of round 2, given up")
    assert lines(tmp_path / "run")[4]["failures"] == []


def test_a_reply_is_known_by_what_was_asked_and_not_by_what_it_says(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    run(config, tmp_path / "simulated")
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        reply.metadata.__dict__["_reply_to_message_id"] = "nonsense"
        reply.metadata.__dict__["_src_node_id"] = IDS[0]
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "simulated")
    pull = grid.pull_messages

    def unreadable(message_ids: Iterable[str]) -> list[Message]:
        found = pull(message_ids)
        if any(
            grid.sent[int(id)].metadata.dst_node_id == IDS[2] and "fit" in grid.sent[int(id)].metadata.message_type
            for id in message_ids
        ):
            raise ValueError("no such object")
        return found

    grid = partitioned(config)
    pull = grid.pull_messages
    grid.pull_messages = unreadable  # type: ignore[method-assign]
    start(config, grid, tmp_path / "unreadable")
    assert failures(tmp_path / "unreadable") == ["1 2 fit: its reply cannot be read: ValueError: no such object"]


def test_a_supernode_that_restarts_before_the_start_counts_once(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)
    grid.online = {IDS[0]}
    restarts = [0]

    class Impatient(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            restarts[0] += 1
            if restarts[0] < 8:
                grid.restart(IDS[0])
            else:  # it goes, the others come, it comes back
                grid.online = set(IDS) if restarts[0] > 12 else set(IDS) - {IDS[0]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.deployment.sites.time", Impatient())
        start(config, grid, tmp_path / "run")
    assert lines(tmp_path / "run")[0]["cohort"] == list(range(6))
    assert failures(tmp_path / "run") == []

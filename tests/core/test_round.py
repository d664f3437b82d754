"""A round as a method's author meets it: requests reach their nodes, bad clients are named, all bytes are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from flwr.app import Message, RecordDict
from helpers import PLUGINS, Make, lines

from fedkd import ArraySpec, Environment, Expected, Payload, RunError, weighted_mean
from fedkd.core.round import Round, _flower_records
from fedkd.core.setup import make_setup
from fedkd.messages.arrival import Arrival
from fedkd.messages.carrier import Carrier
from fedkd.messages.flower import be_the_server, error_reply
from fedkd.messages.merging import Block
from fedkd.messages.payload import from_records
from fedkd.runs.run import make_engine, run

COUNT = {"name": f"{PLUGINS / 'ask.py'}:Count"}


def test_payloads_reach_their_nodes_and_state_lasts(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"strategy": COUNT, "rounds": 3, "cohort": 4, "evaluate.every": 9}), tmp_path / "run")
    asked = dict.fromkeys(range(6), 0)
    for line in lines(tmp_path / "run")[1:]:
        assert line["cohort"] == sorted(line["cohort"])
        assert len(line["cohort"]) == 4
        for node in line["cohort"]:
            asked[node] += 1
            assert line["log"][f"sent-{node}"] == 10 * node
        assert line["log"]["counts"] == [[node, asked[node]] for node in line["cohort"]]  # in node order
    assert len({tuple(line["cohort"]) for line in lines(tmp_path / "run")[1:]}) > 1  # drawn anew each round


def test_every_node_and_round_has_draws_of_its_own_which_a_second_run_repeats(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": COUNT, "evaluate.every": 9})
    for name in ("one", "two"):
        run(config, tmp_path / name)
    assert lines(tmp_path / "one") == lines(tmp_path / "two")
    draws = [v[0] for line in lines(tmp_path / "one") for k, v in line["log"].items() if k.startswith("draws")]
    assert len({tuple(draw) for draw in draws}) == len(draws) == 12
    dropped = [v[1] for line in lines(tmp_path / "one") for k, v in line["log"].items() if k.startswith("draws")]
    assert len({tuple(d) for d in dropped}) > 6
    servers = [tuple(line["log"]["server"]) for line in lines(tmp_path / "one")[1:]]
    assert len(set(servers)) == 2
    run(tiny({"strategy": COUNT, "evaluate.every": 9, "seed": 1}), tmp_path / "three")
    assert lines(tmp_path / "one")[1]["log"]["server"] != lines(tmp_path / "three")[1]["log"]["server"]


def test_replies_that_are_not_read_at_once_or_at_all_still_count(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"strategy": {**COUNT, "unread": True}, "evaluate.every": 9}), tmp_path / "run")
    counts = [line["log"]["counts"] for line in lines(tmp_path / "run")[1:]]
    assert counts == [[[node, 1] for node in range(6)], [[node, 3] for node in range(6)]]


MISBEHAVE = {"name": f"{PLUGINS / 'misbehave.py'}:Misbehave"}


def test_bad_clients_are_named_failures_and_the_run_goes_on(tiny: Make, tmp_path: Path) -> None:
    summary = run(tiny({"strategy": MISBEHAVE, "payload_limit": 100_000}), tmp_path / "run")
    assert summary["status"] == "completed"
    assert summary["failures"] == 5
    first, second = lines(tmp_path / "run")[1:]
    reasons = {failure["node"]: failure["reason"] for failure in first["failures"]}
    assert {failure["action"] for failure in first["failures"]} == {"fit"}
    assert reasons[1].startswith("ValueError: the disk is full (misbehave.py:")
    assert "has values that are not finite" in reasons[2]
    assert "has shape (3,), expected was" in reasons[3]
    assert "weights without 'features.1.weight'" in reasons[4]
    assert "bytes is over the limit of 100000" in reasons[5]
    assert second["failures"] == []
    assert set(first["nodes"]["personal_after_fit/accuracy"]) == {"0"}  # a failed node reports nothing


def test_a_round_with_too_few_good_replies_ends_the_run_by_name(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": MISBEHAVE, "payload_limit": 100_000, "min_replies": 2})
    with pytest.raises(
        RunError, match=r"Round 1, request 'fit': 1 of 6 replies are good, min_replies is 2. node 1: Val"
    ):
        run(config, tmp_path / "run")
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert '"status": "failed"' in summary
    assert "1 of 6 replies" in summary


def test_what_a_failed_request_did_to_the_state_is_lost(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"strategy": MISBEHAVE, "payload_limit": 100_000}), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").rglob("nodes/*"))


def test_the_ledger_counts_what_is_sent_by_direction_and_kind(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 3, "cohort": 4})
    run(config, tmp_path / "run")
    weights = Environment(config).initial_weights()
    one_model = sum(t.numel() * 4 + 128 + len(name) for name, t in weights.items())
    for line in lines(tmp_path / "run")[1:]:
        numbers = 4 * (8 + len("examples") + 8 + len("loss"))
        assert line["bytes"] == {
            "up": {"weights": 4 * one_model, "numbers": numbers},
            "down": {"weights": 4 * one_model},
        }
        assert line["evaluation_bytes"] == {"up": {}, "down": {"weights": 6 * one_model}}


def test_replies_come_as_a_list_or_one_at_a_time(tiny: Make) -> None:
    setup = make_setup(tiny({"strategy": COUNT}))
    with make_engine(setup) as engine:
        federation = Round(setup.environment, engine, 1, engine.nodes(), list(range(6)), [], ["count"])
        assert isinstance(federation.ask("count"), list)
        arriving = federation.ask("count", stream=True)
        assert not isinstance(arriving, list)
        assert next(arriving).payload.numbers["count"] == 2
        federation.ask("count")
        assert [(node, reply.numbers["count"]) for node, reply in arriving] == [(node, 2) for node in range(1, 6)]
        federation.close()


def test_flowers_records_have_the_order_that_was_expected() -> None:
    payload = Payload(weights={"b": torch.ones(1), "a": torch.zeros(1)}, numbers={"examples": 3})
    asked = Expected(weights={name: ArraySpec((1,)) for name in ("a", "b")})
    for expected, order in ((None, ["b", "a"]), (asked, ["a", "b"])):
        records = _flower_records(payload, expected)
        assert list(records.array_records["arrays"]) == order
        assert dict(records.metric_records["metrics"]) == {"examples": 3}


@pytest.mark.parametrize(("good", "required"), [(2, 2), (3, 2), (0, 0)])
def test_enough_replies_are_enough(tiny: Make, good: int, required: int) -> None:
    Round(Environment(tiny({})), Mock(), 1, [0], [0], [], [])._need("fit", 6, good, required)


@pytest.mark.parametrize(("count", "end"), [(3, "node 2: why2$"), (4, r"node 2: why2 \.\.\.$")])
def test_three_reasons_are_named_when_replies_are_too_few(tiny: Make, count: int, end: str) -> None:
    federation = Round(Environment(tiny({})), Mock(), 1, [0], [0], [], [])
    federation.record.failures += [{"node": n, "action": "fit", "reason": f"why{n}"} for n in range(count)]
    federation.record.failures.append({"node": 9, "action": "other", "reason": "why9"})
    with pytest.raises(RunError, match=f"1 of 6 replies are good, min_replies is 2. node 0: why0; node 1: why1; {end}"):
        federation._need("fit", 6, 1, 2)


def test_what_a_node_may_count_is_bounded_by_what_it_has(tiny: Make) -> None:
    carrier = Mock(images_of={0: 5, 1: None}.get)
    federation = Round(Environment(tiny({})), carrier, 1, [0, 1], [0, 1], [], [], lambda images: 3 * images)
    bounded = federation._bounded(Expected(), federation._messages("fit", Payload(), [0, 1]))
    assert isinstance(bounded, dict)
    assert [bounded[node].most_images for node in (0, 1)] == [15, 2**31 - 1]
    assert federation._bounded(None, federation._messages("fit", Payload(), [0])) is None


# The parts, with a carrier that answers at once


class Wire(Carrier):
    """Answers each message by a function of its node; what it carries and settles is noted."""

    def __init__(self, answer: Callable[[int], Payload | str]) -> None:
        self.answer = answer
        self.carried: list[list[Message]] = []
        self.settled: list[tuple[int, bool]] = []
        self.images: dict[int, int] = {}

    def nodes(self) -> Sequence[int]:
        return range(9)

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        self.carried.append(messages)
        for message in messages:
            answer = self.answer(message.metadata.dst_node_id)
            if isinstance(answer, str):
                yield error_reply(message, answer)
            else:
                yield Message(answer.to_records(), reply_to=message)

    def settle(self, node: int, accepted: bool) -> None:
        self.settled.append((node, accepted))

    def images_of(self, node: int) -> int | None:
        return self.images.get(node)


def round_of(
    tiny: Make, answer: Callable[[int], Payload | str], *, least: int = 1, cohort: int = 3, **more: Any
) -> tuple[Round, Wire]:
    be_the_server()
    wire = Wire(answer)
    environment = Environment(tiny({"min_replies": least}))
    return Round(environment, wire, 2, range(9), list(range(cohort)), [0, 1], ["fit"], **more), wire


def number_of(node: int) -> Payload | str:
    return "no" if node == 1 else Payload(weights={"w": torch.tensor([float(node)])}, numbers={"examples": 1 + node})


def test_a_cohort_within_the_round_needs_one_good_reply_only(tiny: Make) -> None:
    federation, wire = round_of(tiny, number_of, least=3)
    part = federation.among([0, 1])
    assert [node for node, _ in part.ask("fit")] == [0]
    assert part.record is federation.record
    assert wire.settled == [(0, True), (1, False)]
    with pytest.raises(RunError, match=r"request 'fit': 0 of 1 replies are good, min_replies is 1\. node 1: no"):
        federation.among([1]).ask("fit")
    with pytest.raises(RunError, match=r"request 'fit': 2 of 3 replies are good, min_replies is 3\."):
        federation.ask("fit")
    assert federation.ask("fit", {0: Payload()})  # one is asked, so one is enough


def test_the_scopes_of_the_server_are_those_given(tiny: Make) -> None:
    assert round_of(tiny, number_of)[0].server_scopes == set()
    assert round_of(tiny, number_of, server_scopes={"own"})[0].server_scopes == {"own"}


def test_nodes_that_share_a_payload_share_its_records(tiny: Make) -> None:
    federation, wire = round_of(tiny, number_of)
    one, other = Payload(numbers={"a": 1.0}), Payload(numbers={"a": 2.0})
    federation.ask("fit", {2: one, 0: other, 1: one})
    zero, first, second = wire.carried[0]
    assert [m.metadata.dst_node_id for m in wire.carried[0]] == [0, 1, 2]
    assert first.content is second.content
    assert zero.content is not first.content
    federation.ask("fit", one)
    assert len({id(message.content) for message in wire.carried[1]}) == 1
    federation.ask("fit")
    assert "numbers" not in wire.carried[2][0].content
    assert list(wire.carried[2][0].content.config_records["round"]["measured"]) == [0, 1]  # type: ignore[arg-type]


def test_merged_replies_are_the_weighted_mean_also_where_they_are_overheard(tiny: Make) -> None:
    right = (0 * 1 + sum(node * (1 + node) for node in range(2, 8))) / (1 + sum(range(3, 9)))
    federation, wire = round_of(tiny, number_of, cohort=8)
    merged = federation.ask("fit", merge=weighted_mean)
    with federation.overheard() as heard:
        again = federation.ask("fit", merge=weighted_mean)
    for found in (merged, again):
        assert float(found.weights["w"]) == pytest.approx(right, rel=1e-6)
        assert found.numbers["examples"] == 34
    assert torch.equal(merged.weights["w"], again.weights["w"])
    assert [(node, float(payload.weights["w"])) for node, payload in heard] == [(n, n) for n in (0, *range(2, 8))]
    assert wire.settled == [(node, node != 1) for node in range(8)] * 2
    assert [f["node"] for f in federation.record.failures] == [1, 1]


@pytest.mark.parametrize("overheard", [False, True])
def test_a_merge_needs_one_good_reply(tiny: Make, overheard: bool) -> None:
    federation, _ = round_of(tiny, number_of)
    with federation.overheard() if overheard else contextlib.nullcontext():
        assert federation.ask("fit", {0: Payload(), 1: Payload()}, merge=weighted_mean).numbers["examples"] == 1
        with pytest.raises(RunError, match="0 of 1 replies are good, min_replies is 1"):
            federation.ask("fit", {1: Payload()}, merge=weighted_mean)
        with pytest.raises(RunError, match="0 of 0 replies are good, min_replies is 1"):
            federation.ask("fit", {}, merge=weighted_mean)
    federation, _ = round_of(tiny, number_of, least=3, cohort=4)
    with federation.overheard() if overheard else contextlib.nullcontext():
        assert federation.ask("fit", merge=weighted_mean).numbers["examples"] == 8
        with pytest.raises(RunError, match="2 of 3 replies are good, min_replies is 3"):
            federation.ask("fit", {0: Payload(), 1: Payload(), 2: Payload()}, merge=weighted_mean)


def test_a_merge_of_ones_own_may_keep_what_it_gets_and_blocks_stay_as_they_came(tiny: Make) -> None:
    federation, wire = round_of(tiny, number_of)
    kept: list[Payload] = []

    def keep(total: Payload, reply: Payload) -> Payload:
        kept.extend([total, reply])
        return total

    for merge in (keep, weighted_mean):
        blocks = [Block(Payload(weights={"w": torch.ones(1) * n}, numbers={"examples": 1.0}).to_records(), [
            Arrival(n)]) for n in (1, 3)]  # fmt: skip
        wire.exchange_merged = lambda *_, blocks=blocks: iter(blocks)  # type: ignore[method-assign, misc]
        federation.ask("fit", merge=merge)
        for payload in kept:
            payload.weights["w"] += 1
        arrived = [from_records(block.merged).weights["w"].item() for block in blocks if block.merged]
        assert arrived == [1.0, 3.0]


def test_measures_are_not_overheard_and_need_no_reply(tiny: Make) -> None:
    federation, wire = round_of(tiny, lambda node: Payload() if node else "no")
    with federation.overheard() as heard:
        federation.measure(Payload(numbers={"a": 1.0}))()
        federation.measure({0: Payload()})()
        assert heard == []
    assert federation.record.bytes == {"up": {}, "down": {}}
    assert federation.record.evaluation_bytes == {"up": {}, "down": {"numbers": 18}}
    assert [(f["node"], f["action"]) for f in federation.record.failures] == [(0, "evaluate")] * 2
    assert [m.metadata.message_type for m in wire.carried[0]] == ["train.evaluate"] * 2


def test_flowers_messages_go_in_node_order_and_come_back_checked(tiny: Make) -> None:
    def answer(node: int) -> Payload | str:
        return "no" if node == 1 else Payload(weights={"w": torch.ones(1 + (node == 2))}, numbers={"examples": node})

    federation, wire = round_of(tiny, answer, least=2)
    messages = [Message(RecordDict(), node, "train") for node in (4, 0, 2, 1)]
    expect = Expected(weights={"w": ArraySpec((1,))}, numbers={"examples": (0, 9)})
    with federation.overheard() as heard:
        good = federation.exchange(messages, expect)
    assert [m.metadata.dst_node_id for m in wire.carried[0]] == [0, 1, 2, 4]
    assert {m.metadata.group_id for m in wire.carried[0]} == {"2"}
    assert [reply.metadata.src_node_id for reply in good] == [0, 4] == [node for node, _ in heard]
    assert dict(good[1].content.metric_records["metrics"]) == {"examples": 4}
    assert [f["node"] for f in federation.record.failures] == [1, 2]
    with pytest.raises(RunError, match="request 'train': 1 of 3 replies are good, min_replies is 2"):
        federation.exchange(messages[1:], expect)


def test_expectations_are_bounded_for_those_whose_images_are_known(tiny: Make) -> None:
    federation, wire = round_of(tiny, number_of)
    messages = federation._messages("fit", Payload(), [0, 1])
    expect = Expected()
    assert federation._bounded(expect, messages) is expect
    wire.images = {0: 5, 1: 6, 7: 8}
    assert federation._bounded(None, messages) is None
    for_one = federation._bounded({1: expect}, messages)
    assert isinstance(for_one, dict)
    assert {node: one.most_images for node, one in for_one.items()} == {1: 6}


def test_progress_is_reported_before_each_step_and_at_the_end(tiny: Make) -> None:
    seen: list[tuple[int, str, int, int]] = []
    federation, _ = round_of(tiny, number_of, on_step=lambda *step: seen.append(step))
    assert list(federation.track("work", "ab")) == ["a", "b"]
    assert seen == [(2, "work", 0, 2), (2, "work", 1, 2), (2, "work", 2, 2)]


def test_a_round_again_has_its_first_cohort_and_a_record_of_its_own(tiny: Make) -> None:
    federation, _ = round_of(tiny, number_of)
    federation.cohort = [0]
    federation.log("x", 1)
    other = Wire(number_of)
    again = federation.again(other)
    assert (again.cohort, again.record.log, again.carrier) == ([0, 1, 2], {}, other)
    assert federation.record.log == {"x": 1}

"""A round of real sites whose result is not usable is undone, and the sites that spoiled it are named, no others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from helpers import Make, lines
from helpers.federations import IDS, failures, partitioned, start
from helpers.loopback import on_the_wire

from fedkd import Payload, RunError
from fedkd.core import undo
from fedkd.core.setup import make_setup
from fedkd.core.undo import Recorder, Replay, flaw_of, offenders
from fedkd.messages.arrays import array_record, serialised, tensors_of
from fedkd.messages.carrier import SiteCarrier
from fedkd.messages.flower import be_the_server, error_reply
from fedkd.streams import numpy_stream

HUGE = 9e7  # within value_limit: the door lets it in
SCAFFOLD = {"strategy": "scaffold"}


def with_huge_weights(nodes: set[int], number: str = "2", value: float = HUGE) -> Callable[[Message, Message], Message]:
    """Return what these nodes make of their models: each value is allowed, but the model's output overflows."""

    def tampered(message: Message, reply: Message) -> Message:
        hostile = message.metadata.dst_node_id in {IDS[node] for node in nodes}
        if hostile and message.metadata.message_type == "train.fit" and message.metadata.group_id == number:
            weights = tensors_of(reply.content["weights"])  # type: ignore[arg-type]
            reply.content["weights"] = array_record({name: torch.full_like(w, value) for name, w in weights.items()})
            reply.content = on_the_wire(serialised(reply.content))
        return reply

    return tampered


DEEP = {"model": {"name": "mlp", "hidden": [32] * 4}, "rounds": 3, "evaluate.every": 1}


def spoiled(reasons: list[str]) -> list[str]:
    return [reason for reason in reasons if "merge: the round is undone" in reason]


@pytest.mark.parametrize("changes", [{}, SCAFFOLD], ids=["fedavg", "scaffold"])
def test_a_site_whose_model_overflows_is_named_and_the_round_has_not_been(
    tiny: Make, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = tiny({**DEEP, **changes})
    grid = partitioned(config)
    grid.tampered = with_huge_weights({4})
    start(config, grid, tmp_path / "run")
    (reason,) = failures(tmp_path / "run")  # nobody else is blamed
    assert reason.startswith("2 4 merge: the round is undone: with this node's reply the output of the global model is")
    found = lines(tmp_path / "run")
    assert found[2]["metrics"]["global/accuracy"] == found[1]["metrics"]["global/accuracy"]
    assert any("the round is undone" in event["event"] for event in found[2]["events"])
    assert found[3]["failures"] == []


@pytest.mark.parametrize("changes", [{}, SCAFFOLD], ids=["fedavg", "scaffold"])
def test_after_an_undone_round_server_and_sites_are_as_before_it(
    tiny: Make, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = tiny({**DEEP, **changes, "evaluate.every": 9})
    grid = partitioned(config)
    grid.tampered = with_huge_weights({4})
    start(config, grid, tmp_path / "run")
    second, third = (
        [m.content for m in grid.sent if m.metadata.group_id == number and m.metadata.message_type == "train.fit"]
        for number in ("2", "3")
    )
    for before, after in zip(second, third, strict=True):
        for kind, record in before.array_records.items():
            ours, theirs = tensors_of(record), tensors_of(after.array_records[kind])
            assert all(ours[name].equal(theirs[name]) for name in ours)
        assert before.config_records["round"]["accepted"] == after.config_records["round"]["accepted"]
    assert bool(second[0].config_records["round"]["accepted"]) == bool(changes)


def test_a_model_whose_output_is_huge_but_finite_is_undone_too(tiny: Make, tmp_path: Path) -> None:
    """Honest training from such a model would diverge in the next round, and honest sites would be blamed."""
    config = tiny(DEEP)
    grid = partitioned(config)
    grid.tampered = with_huge_weights({4}, value=1e4)
    start(config, grid, tmp_path / "run")
    (reason,) = failures(tmp_path / "run")
    assert reason.startswith("2 4 merge: the round is undone")
    assert "or beyond 1e+06" in reason


def test_two_sites_together_are_found_too(tiny: Make, tmp_path: Path) -> None:
    config = tiny(DEEP)
    grid = partitioned(config)
    grid.tampered = with_huge_weights({1, 4})
    start(config, grid, tmp_path / "run")
    assert [reason.split(":")[0] for reason in spoiled(failures(tmp_path / "run"))] == ["2 1 merge", "2 4 merge"]
    assert len(failures(tmp_path / "run")) == 2


def test_if_all_spoil_it_nobody_is_named_and_the_run_goes_on(tiny: Make, tmp_path: Path) -> None:
    config = tiny(DEEP)
    grid = partitioned(config)
    grid.tampered = with_huge_weights(set(range(6)))
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert any("no node was found without which it is sound" in event for event in events_of(tmp_path / "run"))
    assert lines(tmp_path / "run")[3]["metrics"]["global/accuracy"] > 0


def events_of(folder: Path) -> list[str]:
    return [event["event"] for line in lines(folder) for event in line["events"]]


def test_without_replies_that_were_kept_nobody_is_named(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.core.undo._MOST_KEPT", 1000)
    config = tiny(DEEP)
    grid = partitioned(config)
    grid.tampered = with_huge_weights({4})
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert any("the round is undone" in event for event in events_of(tmp_path / "run"))


# The parts


def test_the_limits_of_the_search_are_what_their_comments_say() -> None:
    assert (undo._MOST_KEPT, undo._MOST_TRIALS, undo._PROBE) == (2_147_483_648, 100, 8)  # 2 GiB


@pytest.mark.parametrize(("value", "sound"), [(1e6, True), (-1e6, True), (1e6 + 0.0625, False), (-1e6 - 0.0625, False)])
def test_a_models_output_may_be_a_million(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, value: float, sound: bool
) -> None:
    setup = make_setup(tiny())
    setup.strategy.weights = setup.environment.initial_weights()
    monkeypatch.setattr(undo, "predict", lambda model, images, preprocess: torch.tensor([[0.0, value]]))
    assert (flaw_of(setup.strategy, {}, setup.environment) is None) == sound
    setup.strategy.__class__.classifies = False  # type: ignore[misc]
    try:
        assert flaw_of(setup.strategy, {}, setup.environment) is None
        assert flaw_of(setup.strategy, {"w": torch.tensor([math.nan])}, setup.environment) == "w is not finite"
    finally:
        setup.strategy.__class__.classifies = True  # type: ignore[misc]


def test_a_model_is_probed_on_eight_test_images_or_on_drawn_ones(tiny: Make) -> None:
    environment = make_setup(tiny({"seed": 3})).environment
    whole = environment.data
    for count, probed in ((7, 7), (8, 8), (9, 8)):
        environment.data = dataclasses.replace(whole, test=whole.test.take(np.arange(count)))
        assert np.array_equal(undo._probe(environment).inputs, whole.test.inputs[:probed])
    environment.data = dataclasses.replace(whole, test=whole.test.take(np.arange(0)))
    drawn = numpy_stream(3, 0, "server", "probe").integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    found = undo._probe(environment)
    assert np.array_equal(found.inputs, drawn)
    assert found.labels.tolist() == [0] * 8


class Wire(SiteCarrier):
    """Answers with the values that it has for each node; None is an error reply."""

    def __init__(self, values: dict[int, list[float] | None]) -> None:
        self.values = values

    def nodes(self) -> Sequence[int]:
        return sorted(self.values)

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        for message in messages:
            values = self.values[message.metadata.dst_node_id]
            content = Payload() if not values else Payload(weights={"w": torch.tensor(values)})
            yield error_reply(message, "no") if values is None else Message(content.to_records(), reply_to=message)

    def settle(self, node: int, accepted: bool) -> None: ...

    def undo(self) -> None: ...


def recorded(values: dict[int, list[float] | None], times: int = 1) -> Recorder:
    be_the_server()
    recorder = Recorder(Wire(values))
    nodes = recorder.nodes()
    for _ in range(times):
        messages = [Message(RecordDict(), node, "train.fit") for node in nodes]
        assert len(list(recorder.exchange(messages, None))) == len(nodes)
    return recorder


def test_good_replies_of_a_round_are_kept_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[int, list[float] | None] = {0: [1.0], 1: None, 2: [2.0, 3.0]}
    size = (128 + 4 + 1) + (128 + 8 + 1)
    monkeypatch.setattr(undo, "_MOST_KEPT", 2 * size)
    recorder = recorded(values, 2)
    assert recorder.exchanges is not None
    assert [sorted(exchange) for exchange in recorder.exchanges] == [[0, 2], [0, 2]]
    recorder.nodes()  # a new round
    assert recorder.exchanges == []
    assert recorded(values, 2).exchanges is not None
    monkeypatch.setattr(undo, "_MOST_KEPT", 2 * size - 1)
    too_large = recorded(values, 2)
    assert too_large.exchanges is None
    assert offenders(too_large, lambda replay: True) == []


def tried(
    recorder: Recorder, sound: Callable[[set[int]], bool] = lambda without: False
) -> tuple[list[set[int]], list[int]]:
    sets: list[set[int]] = []

    def is_sound(replay: Replay) -> bool:
        sets.append(replay._without)
        return sound(replay._without)

    found = offenders(recorder, is_sound)
    return sets, found


def test_nodes_are_left_out_alone_and_then_together_the_largest_first() -> None:
    recorder = recorded({0: [0.2], 1: [0.5, -0.9], 2: [], 3: [0.5], 4: [0.2]})
    assert tried(recorder)[0] == [{1}, {3}, {0}, {4}, {2}, {1, 3}, {0, 1, 3}, {0, 1, 3, 4}]
    assert tried(recorder, lambda without: without >= {0, 3})[1] == [0, 1, 3]
    assert tried(recorded({0: [1.0], 1: [2.0]}))[0] == [{1}, {0}]  # not both
    later = recorded({0: [0.2], 1: [0.5]})
    assert later.exchanges is not None
    later.exchanges.append({0: Payload(weights={"w": torch.tensor([0.7])}).to_records()})
    assert tried(later)[0] == [{0}, {1}]  # the largest value of all requests counts


def test_a_trial_with_too_few_replies_is_no_proof() -> None:
    def too_few(without: set[int]) -> bool:
        if without == {1}:
            raise RunError("too few")
        return 1 in without

    assert tried(recorded({0: [0.1], 1: [0.9], 2: [0.2]}), too_few)[1] == [1, 2]


def test_a_hundred_trials_are_made_at_most() -> None:
    assert len(tried(recorded({node: [1.0] for node in range(60)}))[0]) == 100
    assert len(tried(recorded({node: [1.0] for node in range(51)}))[0]) == 51 + 49


def test_a_reply_that_cannot_be_read_has_no_values() -> None:
    broken = RecordDict({"weights": ArrayRecord({"w": Array("float32", (1,), "pickle", b"")})})
    assert [undo._largest(records) for records in (broken, RecordDict())] == [0.0, 0.0]
    several = Payload(weights={"w": torch.tensor([1.0, -3.0]), "none": torch.zeros(0)}, images={"x": torch.ones(1)})
    assert undo._largest(several.to_records()) == 3.0


def test_a_replay_has_the_kept_replies_without_those_left_out() -> None:
    recorder = recorded({0: [1.0], 1: None, 2: [2.0]}, 2)
    replay = Replay(recorder, {2})
    messages = [Message(RecordDict(), node, "train.fit") for node in (2, 1, 0)]
    for kept in (True, True, False):  # of the third request nothing is kept
        replies = list(replay.exchange(messages, None))
        assert [reply.metadata.src_node_id for reply in replies] == [2, 1, 0]
        assert [reply.has_error() for reply in replies] == [True, True, not kept]
    assert (list(replay.nodes()), replay.images_of(0)) == ([], None)

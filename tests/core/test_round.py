"""A round as a method's author meets it: requests reach their nodes, bad clients are named, all bytes are counted."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import PLUGINS, Make, lines

from fedkd import ArraySpec, Environment, Expected, Payload, RunError
from fedkd.core.round import Round, _flower_records
from fedkd.core.setup import make_setup
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

"""Faults on purpose: each kind becomes what it says, by the seed, and the same on every engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from flwr.app import Message, RecordDict
from helpers import Make, checkpoint_bytes, lines, server_state

from fedkd.config import Config, Limits, parse_config
from fedkd.core.sampling import sample_epochs
from fedkd.errors import InputError, PayloadError, RunError
from fedkd.messages.arrival import receive
from fedkd.messages.flower import be_the_server
from fedkd.messages.payload import Expected, Payload, from_records, like
from fedkd.runs.run import run
from fedkd.simulations.faults import DAMAGES, damaged, events_of, fault_of

ALL = {"dropout": 0.1, "straggler": 0.3, "delay": 40.0, "error": 0.1, "corrupted": 0.2, "lost": 0.1}


def faults(config: Config, count: int = 4000, action: str = "fit") -> list:
    be_the_server()
    requests = (Message(RecordDict(), node, f"train.{action}", group_id="3") for node in range(count))
    return [fault_of(config, request) for request in requests]


def test_they_come_as_often_as_the_config_says_and_by_the_seed(tiny: Make) -> None:
    config = tiny({"faults": ALL})
    drawn = faults(config)
    assert drawn == faults(config)
    assert drawn != faults(tiny({"faults": ALL, "seed": 1}))
    share = {kind: count / 4000 for kind, count in Counter(f.kind for f in drawn if f).items()}
    expected, left = {"dropout": 0.1}, 0.9  # one fault a request, in this order
    for kind in ("error", "lost", "corrupted", "straggler"):
        expected[kind] = left * ALL[kind]
        left -= expected[kind]
    assert share == pytest.approx(expected, abs=0.025)
    delays = [f.delay for f in drawn if f and f.kind == "straggler"]
    assert sum(delays) / len(delays) == pytest.approx(40, rel=0.12)
    assert {f.damage for f in drawn if f and f.kind == "corrupted"} == set(DAMAGES)


def test_a_node_that_is_away_is_so_for_the_whole_round_and_measurements_are_spared(tiny: Make) -> None:
    config = tiny({"faults": {"dropout": 0.5}})
    first, second = faults(config, 50, "extract"), faults(config, 50, "digest")
    assert first == second
    assert None in first
    assert faults(tiny({"faults": ALL}), 50, "evaluate") == [None] * 50
    assert faults(tiny(), 50) == [None] * 50


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "payload",
    [
        Payload(weights={"w": torch.ones(2, 3), "v": torch.ones(1)}, numbers={"loss": 1.0}),
        Payload(weights={"w": torch.tensor(2.0)}),
        Payload(indices={"i": torch.tensor([1, 2])}),
        Payload(logits={"z": torch.zeros(0, 3)}),
        Payload(numbers={"loss": 1.0}),
        Payload(),
    ],
)
def test_a_damaged_reply_is_refused_and_the_client_s_own_arrays_are_not_touched(payload: Payload, damage: str) -> None:
    expected = Expected(
        **{kind: like(arrays) for kind, arrays in payload.by_kind()},
        numbers=dict.fromkeys(payload.numbers, (-9.0, 9.0)),
    )
    records = payload.to_records(copy=False)
    receive(records, expected, Limits(10**9, {}))
    with pytest.raises(PayloadError):
        receive(damaged(records, damage), expected, Limits(10**9, {}))  # type: ignore[arg-type]
    again = from_records(records)
    assert [(k, {n: t.tolist() for n, t in a.items()}) for k, a in again.by_kind()] == [
        (k, {n: t.tolist() for n, t in a.items()}) for k, a in payload.by_kind()
    ]


def only(kind: str, **more: float) -> dict[str, float]:
    return {kind: 1.0, **more}


@pytest.mark.parametrize(
    ("table", "timeout", "reason"),
    [
        (only("dropout"), None, "dropped out (injected)"),
        (only("error"), None, "InjectedError: a client error on purpose"),
        (only("lost"), None, "reply lost (injected)"),
        (only("lost"), 30.0, "no reply within 30 s (injected)"),
        (only("straggler", delay=1e9), 30.0, "no reply within 30 s (injected)"),
        (only("corrupted"), None, "bad reply: "),
    ],
)
def test_each_fault_is_a_failure_with_its_reason_and_too_many_end_the_run(
    tiny: Make, tmp_path: Path, table: dict, timeout: float | None, reason: str
) -> None:
    config = tiny({"faults": table, "timeout": timeout, "strategy": "local"})
    with pytest.raises(RunError, match="Round 1, request 'fit': 0 of 6 replies are good, min_replies is 1") as caught:
        run(config, tmp_path / "run")
    assert reason in str(caught.value)


def test_a_straggler_within_the_timeout_costs_nothing_but_simulated_time(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"faults": {"straggler": 0.5, "delay": 5.0}, "timeout": 1000.0}), tmp_path / "late")
    run(tiny(), tmp_path / "prompt")
    late, prompt = lines(tmp_path / "late"), lines(tmp_path / "prompt")
    events = [event for line in late for event in line.pop("events")]
    assert {event["event"] for event in events} == {"injected: straggler"}
    assert all(event["seconds"] > 0 for event in events)
    assert late == [{k: v for k, v in line.items() if k != "events"} for line in prompt]


def test_a_lost_reply_leaves_its_node_as_it_was(tiny: Make, tmp_path: Path) -> None:
    changes = {"strategy": {"name": "local"}, "rounds": 1, "min_replies": 1, "seed": 2}
    run(tiny({**changes, "faults": {"lost": 0.5}}), tmp_path / "lost")
    run(tiny(changes), tmp_path / "whole")
    lost = [f"nodes/{failure['node']}.safetensors" for failure in lines(tmp_path / "lost")[1]["failures"]]
    assert lost
    assert {k: v for k, v in checkpoint_bytes(tmp_path / "lost").items() if "nodes/" in k} == {
        k: v for k, v in checkpoint_bytes(tmp_path / "whole").items() if "nodes/" in k and k not in lost
    }


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "fedmd", "subset_size": 40, "public_epochs": 0, "private_epochs": 1},
         "data.public": {"size": 60}},
    ],
)  # fmt: skip
def test_the_same_faults_on_workers(tiny: Make, tmp_path: Path, strategy: dict) -> None:
    changes = {**strategy, "faults": ALL, "timeout": 60.0, "rounds": 4, "data.partition.clients": 12}
    for name, engine in (("inline", {"name": "inline"}), ("ray", {"name": "ray", "workers": 2})):
        run(tiny({**changes, "engine": engine}), tmp_path / name)
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "inline")
    found = lines(tmp_path / "inline")
    assert len({event["event"] for line in found for event in line["events"]}) == 5
    assert sum(len(line["failures"]) for line in found) > 10


def test_stragglers_do_fewer_epochs_all_equally_likely(tiny: Make) -> None:
    config = tiny({"faults": {"partial_work": 0.6}, "train.epochs": 5})
    drawn = [sample_epochs(config, 3, node) for node in range(4000)]
    assert drawn == [sample_epochs(config, 3, node) for node in range(4000)]
    assert drawn != [sample_epochs(config, 4, node) for node in range(4000)]
    share = {epochs: count / 4000 for epochs, count in Counter(drawn).items()}
    assert share == pytest.approx({1: 0.15, 2: 0.15, 3: 0.15, 4: 0.15, 5: 0.4}, abs=0.025)
    assert sample_epochs(tiny({"train.epochs": 5}), 3, 0) == 5


def test_a_straggler_trains_as_many_epochs_as_its_event_says(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"faults": {"partial_work": 1.0}, "train.epochs": 3, "strategy": "local", "rounds": 1})
    run(config, tmp_path / "run")
    events = lines(tmp_path / "run")[1]["events"]
    done = {event["node"]: event["epochs"] for event in events}
    assert set(done.values()) == {1, 2}
    assert sorted(done) == list(range(6))
    assert {(event["action"], event["event"]) for event in events} == {("fit", "injected: partial_work")}
    for epochs in (1, 2):
        run(tiny({"train.epochs": epochs, "strategy": "local", "rounds": 1}), tmp_path / str(epochs))
    found, whole = (checkpoint_bytes(tmp_path / name) for name in ("run", "1"))
    twice = checkpoint_bytes(tmp_path / "2")
    for node, epochs in done.items():
        name = f"nodes/{node}.safetensors"
        assert found[name] == {1: whole, 2: twice}[epochs][name]


def test_a_node_that_does_no_work_is_no_straggler(tiny: Make) -> None:
    config = tiny({"faults": {"partial_work": 1.0, "dropout": 0.5}, "train.epochs": 2})
    be_the_server()
    for node in range(20):
        request = Message(RecordDict(), node, "train.fit", group_id="3")
        away = fault_of(config, request) is not None
        kinds = [event["event"] for event in events_of(config, request)]
        assert kinds == ["injected: dropout" if away else "injected: partial_work"]
        assert events_of(config, Message(RecordDict(), node, "train.evaluate", group_id="3")) == []


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("strategy", [{"name": "fedavg", "partial": "drop"}, {"name": "fednova"}])
def test_the_same_stragglers_on_workers_and_together(tiny: Make, tmp_path: Path, strategy: dict) -> None:
    faults = {"partial_work": 0.5, "dropout": 0.2}
    changes = {"strategy": strategy, "faults": faults, "train.epochs": 3, "data.partition.clients": 12}
    for engine in ({"name": "inline"}, {"name": "ray", "workers": 2}, {"name": "vectorised"}):
        run(tiny({**changes, "engine": engine}), tmp_path / str(engine["name"]))
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "inline")
    one, other = (server_state(tmp_path / name)["weights"] for name in ("inline", "vectorised"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [{"epochs": 1}, {"epochs": 3, "steps": 5}])
def test_fewer_epochs_need_epochs(tiny: Make, train: dict) -> None:
    with pytest.raises(InputError, match=r"faults.partial_work: .* set train.epochs to 2 or more, and remove train.st"):
        tiny({"faults": {"partial_work": 0.1}, **{f"train.{key}": value for key, value in train.items()}})


def test_faults_of_real_sites_are_refused() -> None:
    table = {
        "data": {"sites": {"count": 2, "classes": ["a", "b"], "shape": [1, 8, 8]}},
        "model": "mlp", "strategy": "fedavg", "faults": {"dropout": 0.1},
    }  # fmt: skip
    with pytest.raises(InputError, match="faults are only possible in a simulation"):
        parse_config(table)
    with pytest.raises(InputError, match="faults.dropout"):
        parse_config({**table, "faults": {"dropout": 1.5}})

"""A round of real sites whose result is not usable is undone, and the sites that spoiled it are named, no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from helpers import Make, lines
from helpers.federations import IDS, failures, partitioned, start
from helpers.loopback import on_the_wire

from fedkd.messages.arrays import array_record, serialised, tensors_of

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

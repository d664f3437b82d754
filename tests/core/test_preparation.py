"""Nodes that missed the preparation, or join late, do it before their first round, on all engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from helpers import Make, checkpoint_bytes, halves_are_the_whole, lines, server_state
from helpers.federations import IDS, MIXED, failures, one_late_and_one_lost, partitioned, start, with_own_data
from helpers.loopback import Loopback
from helpers.virtual_images import LGD, NET, virtual_of

from fedkd import Environment, RunError
from fedkd.config import Config
from fedkd.runs.run import run
from fedkd.simulations.faults import Fault
from fedkd.simulations.inline import InlineGrid

PUBLIC = {"data.public": {"size": 40, "labelled": True}}
FEDMD = {**PUBLIC, "strategy": {"name": "fedmd", "subset_size": 20, "public_epochs": 1, "private_epochs": 1}}
KTPFL = {**PUBLIC, "strategy": {"name": "ktpfl", "subset_size": 20, "private_epochs": 1}}
FEDLGD = {"model": NET, "strategy": LGD}
VIRTUAL = {"model": NET, "strategy": {"name": "fedavg_virtual", "ipc": 1, "initial_steps": 2, "real_batch": 8}}
EMA = {"model": NET, "strategy": {"name": "weight_ema", "base": LGD}}
METHODS = pytest.mark.parametrize(
    ("changes", "once", "rounds"),
    [
        (FEDMD, ["pretrain"], ["communicate", "digest"]),
        (KTPFL, ["pretrain"], ["communicate", "digest"]),
        (FEDLGD, ["begin", "distil"], ["fit"]),
        (VIRTUAL, ["begin", "distil"], ["fit"]),
        (EMA, ["begin", "distil"], ["fit"]),
    ],
    ids=["fedmd", "ktpfl", "fedlgd", "fedavg_virtual", "weight_ema over fedlgd"],
)


def asked_of(node: int, monkeypatch: pytest.MonkeyPatch, fault: Callable[[int, str], bool]) -> dict[int, list[str]]:
    """Return a table of what a node is asked in each round; its requests have faults where `fault` says so."""
    asked: dict[int, list[str]] = {}
    call = InlineGrid._call

    def note(self: InlineGrid, message: Message) -> Message:
        action = message.metadata.message_type.removeprefix("train.")
        if message.metadata.dst_node_id == node and action != "evaluate":
            asked.setdefault(int(message.metadata.group_id), []).append(action)
        return call(self, message)

    def fault_of(config: Config, message: Message) -> Fault | None:
        action = message.metadata.message_type.removeprefix("train.")
        here = message.metadata.dst_node_id == node and fault(int(message.metadata.group_id), action)
        return Fault("corrupted") if here else None

    monkeypatch.setattr(InlineGrid, "_call", note)
    monkeypatch.setattr("fedkd.simulations.node.fault_of", fault_of)
    return asked


@METHODS
def test_a_node_that_missed_it_does_it_before_its_first_round(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], once: list[str],
    rounds: list[str],
) -> None:  # fmt: skip
    """Node 2 fails in round 0, and again in round 1: it takes part from round 2 on."""
    asked = asked_of(2, monkeypatch, lambda number, action: number < 2 and action == once[-1])
    run(tiny({**changes, "rounds": 3, "min_replies": 5}), tmp_path / "run")
    assert asked == {0: once, 1: once, 2: [*once, *rounds], 3: rounds}
    found = lines(tmp_path / "run")
    assert [[(f["node"], f["action"]) for f in line["failures"]] for line in found] == [[(2, once[-1])]] * 2 + [[]] * 2
    assert all(line["cohort"] == list(range(6)) for line in found)
    assert server_state(tmp_path / "run")["prepared"] == set(range(6))


def test_a_round_with_too_few_prepared_nodes_ends_the_run(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of(2, monkeypatch, lambda number, action: action == "pretrain")
    message = r"Round 1: 5 nodes of the cohort are prepared, min_replies is 6. node 2, 'pretrain': bad reply"
    with pytest.raises(RunError, match="Round 0, request 'pretrain': 5 of 6 replies are good"):
        run(tiny({**FEDMD, "min_replies": 6}), tmp_path / "first")
    asked_of(2, monkeypatch, lambda number, action: number == 1)
    monkeypatch.setattr("fedkd.core.strategy.Strategy.prepare", lambda self, _: self.prepared.discard(2))
    with pytest.raises(RunError, match=message):
        run(tiny({**FEDMD, "min_replies": 6}), tmp_path / "later")


@METHODS
def test_a_resumed_run_prepares_the_same_nodes(
    tiny: Make, tmp_path: Path, changes: dict[str, Any], once: list[str], rounds: list[str]
) -> None:
    """Nodes fail in round 0, and few of them are in each round's cohort."""
    faults = {"data.partition.clients": 12, "faults": {"error": 0.2}, "checkpoint": {"every": 1, "keep": 9}}
    config = tiny({**changes, **faults, "rounds": 6, "cohort": 5})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")
    first = server_state(tmp_path / "whole/checkpoints/round-000000")["prepared"]
    assert first < server_state(tmp_path / "whole")["prepared"]


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("changes", [FEDMD, FEDLGD], ids=["fedmd", "fedlgd"])
def test_workers_prepare_the_same_nodes(tiny: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**changes, "rounds": 3, "cohort": 4, "faults": {"error": 0.25}, "seed": 3}
    for name, engine in (("inline", {"name": "inline"}), ("ray", {"name": "ray", "workers": 2})):
        run(tiny({**changes, "engine": engine}), tmp_path / name)
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert checkpoint_bytes(tmp_path / "ray") == checkpoint_bytes(tmp_path / "inline")


def test_a_class_that_only_a_late_node_has_gets_global_images(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 6, "alpha": 0.1, "size": 24}
    config = tiny({**FEDLGD, "data.partition": partition, "rounds": 1})
    counts = Environment(config).data.label_counts()
    alone = [(int(np.flatnonzero(counts[:, c])[0]), c) for c in range(10) if (counts[:, c] > 0).sum() == 1]
    node, label = alone[0]
    asked_of(node, monkeypatch, lambda number, action: number == 0)
    run(config.model_copy(update={"rounds": 0}), tmp_path / "before")
    before = server_state(tmp_path / "before")["anchors"]["labels"].tolist()
    assert label not in before
    run(config, tmp_path / "run")
    after = server_state(tmp_path / "run")["anchors"]["labels"].tolist()
    assert after == np.flatnonzero(counts.sum(0)).tolist()
    assert lines(tmp_path / "run")[1]["failures"] == []
    assert set(virtual_of(tmp_path / "run")[node]["labels"].tolist()) == set(np.flatnonzero(counts[node]))


def sent_to(grid: Loopback, id: int) -> dict[int, list[str]]:
    asked: dict[int, list[str]] = {}
    for message in grid.sent:
        action = message.metadata.message_type.removeprefix("train.")
        if message.metadata.dst_node_id == id and action not in ("query.join", "evaluate"):
            asked.setdefault(int(message.metadata.group_id), []).append(action)
    return asked


@pytest.mark.parametrize(
    ("changes", "once", "rounds"),
    [
        ({**FEDMD, **MIXED}, ["pretrain"], ["communicate", "digest"]),
        ({**KTPFL, **MIXED}, ["pretrain"], ["communicate", "digest"]),
        (FEDLGD, ["begin", "distil"], ["fit"]),
    ],
    ids=["fedmd", "ktpfl", "fedlgd"],
)
def test_sites_that_join_late_or_lose_their_state_do_it_first(
    tiny: Make, tmp_path: Path, changes: dict[str, Any], once: list[str], rounds: list[str]
) -> None:
    """Site 5 comes after round 1; site 2 loses its state after round 2."""
    public = {"data.public": {"name": "digits", "size": 40, "labelled": True}} if "data.public" in changes else {}
    config, sites = with_own_data(tiny(), tmp_path / "sets", {**changes, **public, "rounds": 4})
    grid = one_late_and_one_lost(config, sites, tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert sent_to(grid, IDS[5]) == {2: [*once, *rounds], 3: rounds, 4: rounds}
    assert sent_to(grid, IDS[2]) == {0: once, 1: rounds, 2: rounds, 3: [*once, *rounds], 4: rounds}


def test_a_site_whose_reply_is_lost_in_round_0_does_it_in_round_1(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**FEDMD, "rounds": 2})
    grid = partitioned(config)
    gone: list[Message] = []

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        if node_config["partition-id"] == 4 and message.metadata.message_type == "train.pretrain" and not gone:
            gone.append(message)
            grid.starts[IDS[4]] += 1  # it restarts, and the reply never comes
        return message in gone

    grid.held = held
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run")[0] == "0 4 pretrain: its SuperNode was started anew during the request"
    assert sent_to(grid, IDS[4])[1] == ["pretrain", "communicate", "digest"]

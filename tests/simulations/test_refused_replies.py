"""A reply that the server refuses leaves nothing at its node: server and nodes agree, on all engines, after resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from helpers import Make, checkpoint_bytes, halves_are_the_whole, lines, server_state

from fedkd.config import Config
from fedkd.messages.arrays import Tensors, tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run
from fedkd.simulations.faults import Fault

REFUSED = {"corrupted": 0.25, "lost": 0.05, "straggler": 0.1, "delay": 100.0, "error": 0.05}
SCAFFOLD = {"strategy": {"name": "scaffold"}}
FEDDYN = {"strategy": {"name": "feddyn"}}
KNFU = {"strategy": {"name": "knfu"}, "data.public": {"size": 20},
        "data.partition.clients": 12}  # a personal model, and two requests a round  # fmt: skip
MOCO = {"strategy": {"name": "moco", "width": 8, "probe_epochs": 1, "queue": 16},
        "model": {"name": "convnet", "channels": [4]}, "data.validation": {"size": 20}}  # fmt: skip


def states_of(folder: Path, name: str) -> list[Tensors]:
    """Return what the nodes of a run keep under a name at its end."""
    nodes = load_nodes(latest(folder / "checkpoints")[1])
    return [tensors_of(state.array_records[name]) for _, state in nodes if name in state.array_records]


@pytest.mark.parametrize(
    ("changes", "total", "own"), [(SCAFFOLD, "control", "control_variate"), (FEDDYN, "mean_drift", "drift")]
)
def test_the_servers_sum_is_that_of_its_nodes(
    tiny: Make, tmp_path: Path, changes: dict[str, Any], total: str, own: str
) -> None:
    """SCAFFOLD: c = mean c_k. FedDyn: the server's mean of h_k."""
    run(tiny({**changes, "faults": REFUSED, "timeout": 60.0, "rounds": 6, "cohort": 4}), tmp_path / "run")
    failures = [failure["reason"] for line in lines(tmp_path / "run") for failure in line["failures"]]
    assert any("bad reply" in reason for reason in failures)
    assert any("bad reply" not in reason for reason in failures)
    nodes, sums = states_of(tmp_path / "run", own), server_state(tmp_path / "run")[total]
    for name, tensor in sums.items():
        mean = sum(node[name] for node in nodes) / 6  # of nodes without a state it is 0
        torch.testing.assert_close(tensor, mean, rtol=1e-4, atol=1e-6)
        assert tensor.abs().sum() > 0


def states_after(config: Config, folder: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return the last checkpoint of a run in which node 1 has a fault in round 2."""

    def only(config: Config, message: Message) -> Fault | None:
        here = (message.metadata.dst_node_id, message.metadata.group_id) == (1, "2")
        return fault if here and message.metadata.message_type != "train.evaluate" else None

    monkeypatch.setattr("fedkd.simulations.node.fault_of", only)
    run(config, folder)
    assert {failure["node"] for failure in lines(folder)[2]["failures"]} == {1}
    return checkpoint_bytes(folder)


@pytest.mark.parametrize(
    "changes", [SCAFFOLD, FEDDYN, KNFU, MOCO, {"strategy": {"name": "fml"}}], ids=lambda c: c["strategy"]["name"]
)
def test_a_node_whose_reply_is_refused_is_as_if_it_had_been_away(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = tiny({**changes, "rounds": 3, "timeout": 60.0})
    away = states_after(config, tmp_path / "away", Fault("dropout"), monkeypatch)
    for fault in (Fault("corrupted"), Fault("lost"), Fault("straggler", 100.0)):
        assert states_after(config, tmp_path / fault.kind, fault, monkeypatch) == away


def test_a_refused_measurement_takes_nothing_back_that_was_accepted_before(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({**SCAFFOLD, "rounds": 2})
    run(config, tmp_path / "whole")

    def measured(config: Config, message: Message) -> Fault | None:
        return Fault("corrupted") if message.metadata.message_type == "train.evaluate" else None

    monkeypatch.setattr("fedkd.simulations.node.fault_of", measured)
    run(config, tmp_path / "run")
    assert len(lines(tmp_path / "run")[1]["failures"]) == 6
    assert checkpoint_bytes(tmp_path / "run") == checkpoint_bytes(tmp_path / "whole")


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("changes", [SCAFFOLD, FEDDYN, KNFU], ids=lambda c: c["strategy"]["name"])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_one_process_and_any_number_of_workers_have_the_same_states(
    tiny: Make, tmp_path: Path, changes: dict[str, Any], timeout: float | None
) -> None:
    """Without a timeout workers merge blocks of replies, and refuse some of them."""
    changes = {**changes, "faults": REFUSED, "timeout": timeout, "rounds": 3}
    engines: list[dict[str, Any]] = [{"name": "inline"}, *({"name": "ray", "workers": n} for n in (1, 2))]
    for number, engine in enumerate(engines):
        run(tiny({**changes, "engine": engine}), tmp_path / str(number))
    for other in ("1", "2"):
        assert lines(tmp_path / other) == lines(tmp_path / "0")
        assert checkpoint_bytes(tmp_path / other) == checkpoint_bytes(tmp_path / "0")
    assert any("bad reply" in failure["reason"] for line in lines(tmp_path / "0") for failure in line["failures"])


@pytest.mark.parametrize("changes", [SCAFFOLD, FEDDYN, KNFU], ids=lambda c: c["strategy"]["name"])
def test_a_resumed_run_has_the_same_states(tiny: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny({**changes, "faults": REFUSED, "timeout": 60.0, "rounds": 6})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")

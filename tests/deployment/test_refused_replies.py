"""A site goes back to the state of its last accepted reply: after refused and late ones, and over restarts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from helpers import Make, lines, server_state
from helpers.federations import IDS, PUBLIC, after_round, events, failures, metrics_of, partitioned, start
from helpers.loopback import Clock, Loopback

from fedkd.config import Config
from fedkd.deployment.site_state import requests_on_disk, versions_in
from fedkd.messages.arrays import Tensors, tensors_of
from fedkd.runs.checkpoints import latest, load_node, load_nodes
from fedkd.runs.run import run
from fedkd.simulations.faults import Fault, damaged

SCAFFOLD = {"strategy": {"name": "scaffold"}}
KNFU = {"strategy": {"name": "knfu"}, **PUBLIC}
METHODS = pytest.mark.parametrize(
    "changes", [SCAFFOLD, {"strategy": {"name": "feddyn"}}, KNFU], ids=lambda c: c["strategy"]["name"]
)


def bad(message: Message) -> bool:
    """Return whether a request is one of round 2 to node 3, of which the reply is bad."""
    there = message.metadata.dst_node_id in (3, IDS[3]) and message.metadata.group_id == "2"
    return there and message.metadata.message_type != "train.evaluate"


def tampered(message: Message, reply: Message) -> Message:
    if bad(message) and not reply.has_error():
        reply.content = damaged(reply.content, "nan")
    return reply


def with_folders(grid: Loopback, home: Path) -> Loopback:
    for n, id in enumerate(IDS):
        grid.sites[id]["state"] = str(home / f"state-{n}")
    return grid


def simulated(config: Config, folder: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the metrics of the simulation in which the same replies have a fault."""
    with monkeypatch.context() as patch:
        patch.setattr("fedkd.simulations.node.fault_of", lambda config, message: fault if bad(message) else None)
        run(config, folder)
    return metrics_of(folder)


@METHODS
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_site_whose_reply_is_refused_goes_back_as_a_simulated_node_does(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], on_disk: bool
) -> None:
    config = tiny({**changes, "rounds": 4})
    expected = simulated(config, tmp_path / "simulated", Fault("corrupted"), monkeypatch)
    grid = partitioned(config)
    grid.tampered = tampered
    start(config, with_folders(grid, tmp_path) if on_disk else grid, tmp_path / "run")
    assert failures(tmp_path / "run")[0].startswith("2 3 ")
    assert metrics_of(tmp_path / "run") == expected


@METHODS
def test_a_site_whose_reply_is_late_goes_back_too(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({**changes, "rounds": 4, "timeout": 10.0})
    expected = simulated(config, tmp_path / "simulated", Fault("straggler", 11.0), monkeypatch)
    grid = partitioned(config)
    until: dict[str, float] = {}
    grid.held = lambda message, node: (
        bad(message) and clock.now < until.setdefault(message.metadata.message_id, clock.now + 11)
    )
    start(config, grid, tmp_path / "run")
    assert [event for event in events(tmp_path / "run") if "late" in event]
    assert [line["metrics"] for line in metrics_of(tmp_path / "run")] == [line["metrics"] for line in expected]


def counting(grid: Loopback, folder: Path, name: str) -> list[Tensors]:
    """Return what each site of a run has under a name, in the state that counts at the run's end."""
    found = []
    for node, about in load_nodes(latest(folder / "checkpoints")[1]):
        accepted = str(about.config_records["round"]["accepted"])
        if "state" in grid.sites[IDS[node]]:
            (home,) = [path for path in Path(grid.sites[IDS[node]]["state"]).iterdir() if path.is_dir()]
            request = max(r for r in requests_on_disk(home) if r <= accepted)
            state = load_node(home / f"round-{request}.safetensors")
        else:
            state = [v for v in versions_in(grid.contexts[IDS[node]].state) if v.request <= accepted][-1].state
        found.append(tensors_of(state.array_records[name]))
    return found


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_servers_control_variate_is_the_mean_of_its_sites(tiny: Make, tmp_path: Path, on_disk: bool) -> None:
    """The last reply of site 3 in the run is refused: nothing after it could bring the site back."""
    config = tiny({**SCAFFOLD, "rounds": 2, "evaluate.every": 9})
    grid = partitioned(config)
    grid.tampered = tampered
    start(config, with_folders(grid, tmp_path) if on_disk else grid, tmp_path / "run")
    own = counting(grid, tmp_path / "run", "control_variate")
    assert len(own) == 6
    for name, total in server_state(tmp_path / "run")["control"].items():
        torch.testing.assert_close(total, sum(one[name] for one in own) / 6, rtol=1e-4, atol=1e-6)


def test_a_site_that_restarts_after_a_refused_reply_goes_back(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({**SCAFFOLD, "rounds": 4})
    expected = simulated(config, tmp_path / "simulated", Fault("corrupted"), monkeypatch)
    grid = with_folders(partitioned(config), tmp_path)
    grid.tampered = tampered
    start(config, grid, tmp_path / "run", on_round=after_round(2, lambda: grid.restart(IDS[3])))
    assert metrics_of(tmp_path / "run") == expected


@METHODS
@pytest.mark.parametrize(("crashes", "newest_lost"), [(2, False), (2, True), (3, True)])
def test_a_server_that_goes_on_from_a_checkpoint_takes_its_sites_back_to_what_counted_then(
    tiny: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    crashes: int,
    newest_lost: bool,
) -> None:
    """It goes on after the round of the refused reply, which is the newest or not, or after the round before."""
    config = tiny({**changes, "rounds": 4, "checkpoint": {"every": 1, "keep": 2}})
    expected = simulated(config, tmp_path / "simulated", Fault("corrupted"), monkeypatch)

    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    for number in (7, 8):
        grid = with_folders(partitioned(config, run=number), tmp_path)
        grid.tampered = tampered
        if number == 7:
            with pytest.raises(Crash):
                start(config, grid, tmp_path / "run", on_round=after_round(crashes, crash))
            if newest_lost:
                shutil.rmtree(latest(tmp_path / "run/checkpoints")[1])
        else:
            start(config, grid, tmp_path / "run", resume=True)
    assert metrics_of(tmp_path / "run") == expected


def test_a_site_whose_states_are_all_damaged_takes_part_again_once_the_server_knows(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**SCAFFOLD, "rounds": 4})
    grid = with_folders(partitioned(config), tmp_path)

    def damage() -> None:
        grid.restart(IDS[3])
        for path in (tmp_path / "state-3").rglob("*.safetensors"):
            path.write_bytes(b"torn")

    start(config, grid, tmp_path / "run", on_round=after_round(2, damage))
    assert failures(tmp_path / "run") == ["3 3 fit: its state was lost; it starts afresh"]
    assert events(tmp_path / "run")[-1] == "3 partition-3: its state was lost; it starts afresh"
    assert "3" in lines(tmp_path / "run")[4]["nodes"]["personal_after_fit/accuracy"]

"""What a site keeps over restarts, and what becomes of a run where it has lost it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, lines
from helpers.federations import (
    FEDLGD,
    IDS,
    MIXED,
    PUBLIC,
    after_round,
    events,
    failures,
    metrics_of,
    one_late_and_one_lost,
    partitioned,
    start,
    with_own_data,
)

from fedkd.config import CheckpointConfig
from fedkd.deployment.site_state import (
    Version,
    in_context,
    keep_state,
    recall_state,
    request_name,
    requests_on_disk,
    versions_in,
)
from fedkd.messages.arrays import array_record
from fedkd.runs.run import run


def test_a_site_with_a_state_folder_loses_nothing_by_a_restart(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny({"rounds": 4, "strategy": {"name": "scaffold"}})
    results = {}
    for name, restarted in (("whole", False), ("restarted", True)):
        grid = partitioned(config)
        for n, id in enumerate(IDS):
            grid.sites[id]["state"] = str(tmp_path / name / f"state-{n}")
        action = (lambda grid=grid: grid.restart(IDS[2])) if restarted else (lambda: None)
        start(config, grid, tmp_path / f"{name}-run", on_round=after_round(2, action))
        results[name] = metrics_of(tmp_path / f"{name}-run")
    assert results["whole"] == results["restarted"]
    assert events(tmp_path / "restarted-run")[6:] == ["3 partition-2: is back: 24 training images"]
    run(config, tmp_path / "simulated")
    assert results["whole"] == metrics_of(tmp_path / "simulated")
    kept = sorted(p.name for p in (tmp_path / "whole/state-2").rglob("*.safetensors"))
    assert kept == ["round-000003-000006.safetensors", "round-000004-000008.safetensors"]


def version(number: int, count: int, value: float) -> Version:
    return Version(request_name(number, count), RecordDict({"model": array_record({"w": torch.tensor([value])})}))


def value_at(folder: Path, accepted: str) -> float | None:
    found, _ = recall_state(folder, accepted)
    return None if found is None else float(found.state.array_records["model"]["w"].numpy()[0])


def kept_in(folder: Path) -> list[tuple[int, int]]:
    return [(int(request[:6]), int(request[7:])) for request in requests_on_disk(folder)]


def test_a_site_keeps_what_a_restarted_server_can_ask_for(tmp_path: Path) -> None:
    home = tmp_path / "state"
    assert value_at(home, "") is None
    every = CheckpointConfig(every=3, keep=1)
    for number in range(12):
        if number not in (6, 9):  # sits these rounds out
            keep_state(home, version(number, 2 * number, number), every, 0)
            keep_state(home, version(number, 2 * number + 1, number + 0.5), every, 0)
    assert kept_in(home) == [(5, 11), (8, 17), (10, 21), (11, 22), (11, 23)]
    assert value_at(home, request_name(11, 23)) == 11.5  # the SuperNode restarted
    assert value_at(home, request_name(11, 22)) == 11  # the last reply was refused
    assert value_at(home, request_name(10, 21)) == 10.5  # the server was interrupted in round 11, and kept round 10
    assert value_at(home, request_name(8, 17)) == 8.5  # the server did, and goes on after round 9
    assert value_at(home, request_name(5, 11)) == 5.5  # and again, after round 6
    assert kept_in(home) == [(5, 11)]
    assert value_at(home, "") is None  # the server has accepted no reply of this site


def test_a_run_that_goes_on_between_two_marks_can_go_back_to_where_it_did(tmp_path: Path) -> None:
    every = CheckpointConfig(every=10, keep=1)
    for number in range(16):  # it ended at round 15, where the server checkpoints
        keep_state(tmp_path, version(number, number, number), every, 0)
    for number in (16, 17, 18):
        keep_state(tmp_path, version(number, number, number), every, 16)
    assert value_at(tmp_path, request_name(15, 15)) == 15


def test_a_damaged_state_is_named_and_the_one_before_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = CheckpointConfig(every=1, keep=1)
    for number in (1, 2):
        keep_state(tmp_path, version(number, number, number), every, 0)
    (tmp_path / "round-000002-000002.safetensors").write_bytes(b"torn")
    found, damaged = recall_state(tmp_path, request_name(2, 2))
    assert (found, damaged) == (version(1, 1, 1), True)
    assert "round-000002-000002.safetensors is damaged" in caplog.text


def test_flowers_context_has_the_versions_of_a_state_also_an_empty_one() -> None:
    versions = [version(1, 2, 3.0), Version(request_name(2, 5), RecordDict())]
    assert versions_in(in_context(versions)) == versions
    assert versions_in(RecordDict()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"name": "fedavg"}},
        {"strategy": {"name": "scaffold"}},
        {"strategy": {"name": "feddyn"}},
        {"strategy": {"name": "moon"}},
        {"strategy": {"name": "knfu"}, **PUBLIC, **MIXED},
        {"strategy": {"name": "fedmd", "public_epochs": 0, "private_epochs": 1}, **PUBLIC, **MIXED},
        {"strategy": {"name": "ktpfl"}, **PUBLIC, **MIXED},
        {"strategy": {"name": "comet"}, **PUBLIC, **MIXED},
        {"strategy": {"name": "dsfl"}, **PUBLIC, **MIXED},
        {"strategy": {"name": "fd"}, **MIXED},
        {"strategy": {"name": "fedproto"}},
        {"strategy": {"name": "fml"}},
        {"strategy": {"name": "fedgen"}},
        {"strategy": {"name": "fedavg_virtual", "ipc": 1, "initial_steps": 2}, "model": FEDLGD["model"]},
        {"strategy": {"name": "vhl", "noise_per_class": 2, "generator_width": 8}, "model": FEDLGD["model"]},
        FEDLGD,
    ],
    ids=lambda changes: changes["strategy"]["name"],
)
def test_newcomers_and_sites_that_lost_their_state_take_part_again(
    tiny: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Site 5 comes after round 1; site 2 loses its state after round 2."""
    public = {"data.public": {"name": "digits", "size": 40}} if "data.public" in changes else {}
    config, sites = with_own_data(tiny(), tmp_path / "sets", {**changes, **public, "rounds": 4})
    one_late_and_one_lost(config, sites, tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [line["cohort"] for line in found] == [list(range(5))] * 2 + [list(range(6))] * 3
    late = [failure for failure in failures(tmp_path / "run") if not failure.startswith("3 2")]
    assert late == []  # in the round of its return a site may lack what the server shares once; it gets it in the next
    assert {"2", "5"} <= found[4]["nodes"]["personal/accuracy"].keys()


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"strategy": {"name": "vhl", "noise_per_class": 2, "generator_width": 8}, "model": FEDLGD["model"]}, 6),
        (FEDLGD, 0),  # it prepares them anew
    ],
    ids=["vhl", "fedlgd"],
)
def test_a_federation_goes_on_whose_sites_have_all_lost_what_the_server_shares_once(
    tiny: Make, tmp_path: Path, changes: dict[str, Any], failing: int
) -> None:
    """The server is started anew, and no site has a folder for its state: who is known to hold it has it no more."""
    config = tiny({**changes, "rounds": 2})
    start(config, partitioned(config), tmp_path / "run")
    longer = config.model_copy(update={"rounds": 4})
    start(longer, partitioned(longer, run=8), tmp_path / "run", resume=True)
    found = lines(tmp_path / "run")
    assert [line["round"] for line in found] == [0, 1, 2, 3, 4]
    assert sorted(failure["node"] for failure in found[3]["failures"]) == list(range(failing))
    assert found[4]["failures"] == []

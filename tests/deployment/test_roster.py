"""Who takes part: sites that do not fit are refused on both sides, names stay with keys, newcomers join."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, Make, lines, merged
from helpers.federations import (
    CLASSES,
    IDS,
    after_round,
    events,
    failures,
    partitioned,
    refused,
    sites_config,
    start,
    with_own_data,
)
from helpers.loopback import Loopback

from fedkd.config import parse_config


@pytest.mark.parametrize(
    ("node_config", "changes", "reason"),
    [
        (
            {"data": "digits"},
            {"data.sites.classes": ["cat", "dog"]},
            "its classes are 0, 1, .*; data.sites.classes are cat",
        ),
        ({"data": "digits"}, {"data.sites.shape": [1, 9, 9]}, "its images are 1x8x8 .*, data.sites.shape is 1x9x9"),
        ({"data": "digits", "model": "cnn"}, {}, "model = 'cnn': fedavg needs one of the config's: mlp"),
        ({"data": "npz:/no/such/file.npz"}, {}, "refused: MissingFiles: data: there is no file <path>"),
        ({"partition-id": 0}, {}, "sites bring images of their own; this one has no data"),
        ({}, {}, "this site has no data: set data"),
        ({"data": "digits", "name": "../up"}, {}, "name = .* letters, digits"),
        ({"data": "digits", "model": "resnet"}, {}, "unknown 'resnet'"),
    ],
)
def test_a_site_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    node_config: dict[str, Any],
    changes: dict[str, Any],
    reason: str,
) -> None:
    message = refused(sites_config(changes), {5: node_config}, tmp_path, monkeypatch)
    assert "0 of 1 sites are here after 5 s" in message
    assert re.search(reason, message)
    assert [r for r in caplog.records if r.levelno == logging.ERROR]  # the site's own log has it too


def test_shares_names_and_versions_are_checked(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny({"timeout": 5.0})
    sites = {id: {"partition-id": n} for n, id in enumerate(IDS)}
    sites[IDS[5]] = {"partition-id": 6}
    assert "partition-id = 6: the config has partitions 0 to 5" in refused(config, sites, tmp_path / "a", monkeypatch)
    sites[IDS[5]] = {"partition-id": 4}
    assert "has taken this name first" in refused(config, sites, tmp_path / "b", monkeypatch)
    sites[IDS[5]] = {"partition-id": 5, "data": "digits"}
    assert "config has images of its own (digits)" in refused(config, sites, tmp_path / "c", monkeypatch)
    monkeypatch.setattr("fedkd.deployment.sites.version", lambda name: "9.9")
    sites[IDS[5]] = {"partition-id": 5}
    assert "the server 9.9" in refused(config, sites, tmp_path / "d", monkeypatch)


def test_a_newcomer_joins_a_running_federation(tiny: Make, tmp_path: Path) -> None:
    config, sites = with_own_data(tiny(), tmp_path / "sets", {"rounds": 3})
    late = {IDS[4]: {**sites.pop(IDS[4]), "name": "alpha"}}
    config = parse_config(
        merged(
            TINY,
            {
                "data": config.data.model_dump(exclude_none=True)
                | {"sites": {"count": 5, "classes": CLASSES, "shape": [1, 8, 8]}},
                "rounds": 3,
            },
        )
    )
    grid = Loopback(config, sites | late)
    grid.online.discard(IDS[4])
    start(config, grid, tmp_path / "run", on_round=after_round(1, lambda: grid.online.add(IDS[4])))
    assert [line["cohort"] for line in lines(tmp_path / "run")] == [list(range(5))] * 2 + [list(range(6))] * 2
    assert events(tmp_path / "run")[-1] == "2 alpha: joined: 24 training images"
    roster = json.loads((tmp_path / "run/sites.json").read_text())
    assert roster["ids"] == {f"site-{n}": IDS[n] for n in (0, 1, 2, 3, 5)} | {"alpha": IDS[4]}
    assert roster["numbers"] == {"site-0": 0, "site-1": 1, "site-2": 2, "site-3": 3, "site-5": 4, "alpha": 5}


def test_a_name_stays_with_its_key(tiny: Make, tmp_path: Path) -> None:
    config, sites = with_own_data(tiny(), tmp_path / "sets", {"rounds": 4})
    thief, owner = IDS[4], IDS[1]

    def on_round(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.online.discard(owner)
            grid.sites[thief] = {**grid.sites[thief], "name": "site-1"}
            grid.restart(thief)
        if record.number == 2:
            grid.sites[thief] = {**grid.sites[thief], "name": "new"}
            grid.restart(thief)
        if record.number == 3:
            grid.online.add(owner)

    grid = Loopback(config, sites)
    grid._insecure = False
    start(config, grid, tmp_path / "run", on_round=on_round)
    happened = events(tmp_path / "run")[6:]
    assert happened[0].startswith(f"2 site-1: refused: the name belongs to SuperNode {owner}, which has another key")
    assert happened[1] == "3 new: refused: it has taken part as site-4 before"
    assert len(json.loads((tmp_path / "run/sites.json").read_text())["numbers"]) == 6
    assert {failure.split()[1] for failure in failures(tmp_path / "run")} == {"1", "4"}
    assert lines(tmp_path / "run")[4]["failures"][0] == {
        "node": 4, "action": "fit", "reason": "its SuperNode was started anew; it joins again before the next round",
    }  # fmt: skip


def test_two_names_do_not_share_a_number(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = {id: {"partition-id": min(n, 4), "name": f"n{n}"} for n, id in enumerate(IDS)}
    assert "another site has partition-id = 4" in refused(tiny({"timeout": 5.0}), sites, tmp_path, monkeypatch)


def test_a_site_that_says_another_share_than_before_is_refused(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 3})
    grid = partitioned(config)
    grid.sites[IDS[0]]["name"] = "mine"

    def change() -> None:
        grid.online.discard(IDS[5])
        grid.sites[IDS[0]] = {"name": "mine", "partition-id": 5}
        grid.restart(IDS[0])

    start(config, grid, tmp_path / "run", on_round=after_round(1, change))
    assert "2 mine: refused: another site, partition-5, has partition-id = 5" in events(tmp_path / "run")

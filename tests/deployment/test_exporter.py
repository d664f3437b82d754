"""The metrics endpoint: over HTTP, during a run, and with files that are damaged or not there."""

from __future__ import annotations

import os
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest
from helpers import Make, lines
from helpers.exporter import Samples, scrape
from helpers.federations import IDS, partitioned, start
from helpers.runs_by_hand import Write
from helpers.superlink import free_ports

from fedkd.deployment.exporter import metrics_of_run, metrics_of_site, newest_run, serve_metrics
from fedkd.deployment.roster import Roster
from fedkd.errors import InputError

pytest.importorskip("prometheus_client")


def test_a_run_is_scraped_while_it_goes_on(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 3, "evaluate.every": 3})
    grid = partitioned(config)
    runs = tmp_path / "runs"
    (port,) = free_ports(1)
    serve_metrics(str(port), lambda: metrics_of_run(runs))
    assert scrape(port) == {}  # no run yet
    during: list[Samples] = []

    def on_round(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.online.discard(IDS[2])
        during.append(scrape(port))

    start(config, grid, runs / "first", on_round=on_round)
    assert [found["fedkd_round", "first"] for found in during] == [0, 1, 2, 3]
    assert {found["fedkd_rounds", "first"] for found in during} == {3}
    assert not any(("fedkd_run_ended", "first", "completed") in found for found in during)
    failures = [{key[1:]: value for key, value in found.items() if "failures" in key[0]} for found in during]
    fit, evaluate = ("partition-2", "fit", "first"), ("partition-2", "evaluate", "first")
    assert failures == [{}, {}, {fit: 1}, {fit: 2, evaluate: 1}]
    after = scrape(port)
    assert after["fedkd_run_ended", "first", "completed"] == 1
    weights = sum(line["bytes"]["up"].get("weights", 0) for line in lines(runs / "first"))
    assert after["fedkd_bytes_total", "up", "weights", "first"] == weights > 0
    ledgers = [line[key]["down"] for line in lines(runs / "first") for key in ("bytes", "evaluation_bytes")]
    assert after["fedkd_bytes_total", "down", "weights", "first"] == sum(one.get("weights", 0) for one in ledgers)
    assert after["fedkd_seconds_total", "round", "first"] >= after["fedkd_round_seconds", "round", "first"] > 0


def test_the_seconds_of_a_run_by_part(write: Write, tmp_path: Path) -> None:
    folder = write("a", 0, [0.3, 0.5], {"rounds": 9})
    Roster(numbers={"ward-7": 0}, path=folder / "sites.json").write()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics_of_run(tmp_path / "runs")
        for sample in family.samples
    }
    assert found == {
        ("fedkd_rounds", "a"): 9,
        ("fedkd_round", "a"): 2,
        ("fedkd_run_ended", "a", "completed"): 1,
        ("fedkd_round_seconds", "a", "round"): 2.0,
        ("fedkd_round_seconds", "a", "evaluation"): 9.0,
        ("fedkd_seconds_total", "a", "round"): 6.0,
        ("fedkd_seconds_total", "a", "evaluation"): 27.0,
        ("fedkd_failures_total", "a", "ward-7", "None"): 1,
        ("fedkd_bytes_total", "a", "up", "logits"): 1_000_000,
        ("fedkd_bytes_total", "a", "down", "weights"): 3_000_000,
    }


def test_the_newest_run_is_the_one_that_has_changed_last(write: Write, tmp_path: Path) -> None:
    assert newest_run(tmp_path / "runs") is None
    for name in ("b", "a", "c"):
        write(name, 0, [0.3])
    os.utime(tmp_path / "runs/a/metrics.jsonl", (2**32, 2**32))
    assert newest_run(tmp_path / "runs") == tmp_path / "runs/a"


@pytest.mark.parametrize("name", ["config.toml", "sites.json", "summary.json"])
def test_damaged_files_give_no_sample_and_the_endpoint_goes_on(write: Write, tmp_path: Path, name: str) -> None:
    folder = write("a", 0, [0.3])
    Roster(path=folder / "sites.json").write()
    (port,) = free_ports(1)
    serve_metrics(f"localhost:{port}", lambda: metrics_of_run(tmp_path / "runs"))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(b"\xff{")
    assert scrape(port) == {}
    (folder / name).write_bytes(whole)
    assert scrape(port)["fedkd_round", "a"] == 1


def test_a_site_counts_its_requests_if_it_is_asked_to(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny({"rounds": 2, "evaluate.every": 2})
    grid = partitioned(config)
    grid.sites[5] = {"partition-id": 1, "state": str(tmp_path / "state")}
    grid.contexts[5] = grid._fresh(5)
    start(config, grid, tmp_path / "first")
    assert not (tmp_path / "state/requests.json").exists()

    monkeypatch.setenv("FEDKD_METRICS", "9464")
    grid = partitioned(config, run=8)
    grid.sites[5] = {"partition-id": 1, "state": str(tmp_path / "state")}
    grid.contexts[5] = grid._fresh(5)
    (port,) = free_ports(1)
    serve_metrics(f"127.0.0.1:{port}", lambda: metrics_of_site(tmp_path / "state"))
    assert scrape(port) == {}
    start(config, grid, tmp_path / "second")
    found = scrape(port)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "fedkd_site_requests_total"}
    assert requests == {("answered", "join"): 1, ("answered", "fit"): 2, ("answered", "evaluate"): 2}
    ledgers = [line[key] for line in lines(tmp_path / "second") for key in ("bytes", "evaluation_bytes")]
    for direction, requests_with_weights in (("down", 4), ("up", 2)):
        of_six = sum(one[direction].get("weights", 0) for one in ledgers)  # by the server's own ledger
        assert found["fedkd_site_bytes_total", direction, "weights"] == of_six / 6
        assert of_six / 6 / requests_with_weights == 4 * (64 * 16 + 16 + 16 * 10 + 10) + 4 * (128 + 16)  # npy, names
    assert found["fedkd_site_seconds_total", "fit"] > 0
    assert found["fedkd_site_last_request_timestamp_seconds",] > 1.7e9


def test_what_is_no_address_or_is_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    serve_metrics(str(port), lambda: [])
    with pytest.raises(InputError, match=f"'{port}': this address cannot be used: Address already in use"):
        serve_metrics(str(port), lambda: [])
    with pytest.raises(urllib.error.URLError):
        scrape(port, "127.0.0.2")  # a port alone is served on the loopback address only
    for address in ("", "x", ":9464", "a b:9464", "9464/metrics", "127.0.0.1:0"):
        with pytest.raises(InputError, match="give a port, such as 9464"):
            serve_metrics(address, lambda: [])
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InputError, match=r"install fedkd\[metrics\]"):
        serve_metrics("9464", lambda: [])

"""Federations of real sites on the loopback grid, and what their runs tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd import RunError
from fedkd.config import Config, parse_config
from fedkd.data.federation import federate
from fedkd.data.writing import write_sets
from fedkd.deployment.serve import serve
from helpers import TINY, lines, merged
from helpers.loopback import Clock, Loopback

IDS = (2**63 + 11, 5, 2**40, 977, 12, 3 * 10**18)  # of SuperNodes, in no order


PUBLIC = {"data.public": {"size": 40}}


MIXED = {"model": {"names": [{"name": "mlp", "hidden": [16]}, {"name": "cnn", "channels": [4, 8]}, "mlp"]}}


CLASSES = [str(n) for n in range(10)]


FEDLGD = {
    "strategy": {
        "name": "fedlgd",
        "ipc": 1,
        "server_ipc": 1,
        "initial_steps": 2,
        "local_steps": 1,
        "global_steps": 2,
        "gap": 2,
    },
    "model": {"name": "convnet", "channels": [8]},
}


def partitioned(config: Config, **more: Any) -> Loopback:
    """Return a federation of SuperNodes that hold the config's partitions."""
    shares = range(config.data.partition.model_extra["clients"])  # type: ignore[union-attr, index]
    return Loopback(config, {id: {"partition-id": n} for n, id in zip(shares, IDS, strict=False)}, **more)


def start(config: Config, grid: Loopback, path: Path, **more: Any) -> dict[str, Any]:
    """Run a federation; return its summary."""
    return serve(grid, config, path, **{"resume": False, **more})


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without the events of real sites."""
    return [{key: value for key, value in line.items() if key != "events"} for line in lines(folder)]


def events(folder: Path) -> list[str]:
    return [f"{line['round']} {event['site']}: {event['event']}" for line in lines(folder) for event in line["events"]]


def failures(folder: Path) -> list[str]:
    found = [(line["round"], failure) for line in lines(folder) for failure in line["failures"]]
    return [f"{number} {f['node']} {f['action']}: {f['reason']}" for number, f in found]


def with_own_data(config: Config, folder: Path, changes: dict[str, Any]) -> tuple[Config, dict[int, dict[str, Any]]]:
    """Return the config of the same federation where each node is a site with its images in a file of its own."""
    paths = write_sets(federate(config.data, config.seed), folder)
    mean, deviation = (0.3053,), (0.376,)
    data = {
        "sites": {"count": len(paths), "classes": CLASSES, "shape": [1, 8, 8]},
        "mean": list(mean),
        "deviation": list(deviation),
    }
    own = parse_config(merged(TINY, {"data": data, **changes}))
    named = enumerate(zip(IDS, paths, strict=False))
    return own, {id: {"data": f"npz:{path}", "name": f"site-{n}"} for n, (id, path) in named}


def refused(config: Config, sites: dict[int, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    heard: list[str] = []
    with pytest.raises(RunError) as error:
        start(config, Loopback(config, sites), tmp_path / "run", on_event=heard.append)
    assert any("refused" in text for text in heard)
    return str(error.value)


def sites_config(changes: dict[str, Any]) -> Config:
    data = {"sites": {"count": 1, "classes": CLASSES, "shape": [1, 8, 8]}}
    return parse_config(merged(TINY, {"data": data, "timeout": 5.0, **changes}))


def after_round(number: int, action: Callable[[], None]) -> Callable[..., None]:
    """Return an `on_round` that acts when a round has ended."""
    return lambda record, environment: action() if record.number == number else None


def one_late_and_one_lost(config: Config, sites: dict[int, dict[str, Any]], folder: Path) -> Loopback:
    """Run six sites, of which the last comes after round 1 and the third loses its state after round 2."""
    assert config.data.sites is not None
    five = config.data.sites.model_copy(update={"count": 5})
    config = config.model_copy(update={"data": config.data.model_copy(update={"sites": five})})
    grid = Loopback(config, sites)
    grid.online.discard(IDS[5])

    def on_round(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.online.add(IDS[5])
        if record.number == 2:
            grid.restart(IDS[2])

    start(config, grid, folder, on_round=on_round)
    return grid

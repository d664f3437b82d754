"""A federation of real sites has the simulation's numbers; its server restarts, has no data, refuses what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Make, checkpoint_bytes, lines
from helpers.federations import (
    FEDLGD,
    IDS,
    MIXED,
    PUBLIC,
    after_round,
    events,
    failures,
    metrics_of,
    partitioned,
    sites_config,
    start,
    with_own_data,
)
from helpers.loopback import Loopback
from PIL import Image

from fedkd import InputError
from fedkd.data.federation import federate
from fedkd.data.site_data import site_data
from fedkd.data.spec import Form
from fedkd.deployment.site_state import versions_in
from fedkd.models.build import build
from fedkd.runs.run import run
from fedkd.runs.run_folder import alone_in


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("fedavg", {}),
        ("fedavg", {"cohort": 4, "model.name": "resnet8", "model.hidden": None}),
        ("scaffold", {"cohort": 4}),
        ("feddyn", {}),
        ("knfu", PUBLIC | MIXED | {"cohort": 4}),
        ("ktpfl", PUBLIC | MIXED | {"strategy": {"name": "ktpfl", "private_epochs": 1}}),
        ("feddf", PUBLIC | MIXED | {"strategy": {"name": "feddf", "steps": 3}}),
        ("fedproto", {}),
        ("fedgen", {}),
        ("fedftg", {"strategy": {"name": "fedftg", "base": {"name": "scaffold"}}, "rounds": 1}),
        ("fedlgd", FEDLGD),
        ("local", MIXED),
        ("flwr.serverapp.strategy:FedAdam", {}),
    ],
)
def test_sites_with_any_ids_and_replies_in_any_order_give_the_simulations_numbers(
    tiny: Make, tmp_path: Path, strategy: str, changes: dict[str, Any]
) -> None:
    config = tiny({"strategy": {"name": strategy}, **changes})
    run(config, tmp_path / "simulated")
    start(config, partitioned(config), tmp_path / "sites")
    assert metrics_of(tmp_path / "sites") == metrics_of(tmp_path / "simulated")
    server = {p: b for p, b in checkpoint_bytes(tmp_path / "simulated").items() if "server" in p}
    assert {p: b for p, b in checkpoint_bytes(tmp_path / "sites").items() if "server" in p} == server
    assert server
    assert failures(tmp_path / "sites") == []


def test_sites_with_data_and_models_of_their_own_give_the_simulations_numbers(tiny: Make, tmp_path: Path) -> None:
    public = {"data.public": {"name": "digits", "size": 40}, "strategy": {"name": "knfu"}}
    simulated = tiny({**public, **MIXED})
    run(simulated, tmp_path / "simulated")
    config, sites = with_own_data(simulated, tmp_path / "sets", {**public, **MIXED})
    start(config, Loopback(config, sites), tmp_path / "sites")
    for mine, theirs in zip(metrics_of(tmp_path / "sites"), metrics_of(tmp_path / "simulated"), strict=True):
        known = {name: value for name, value in theirs["metrics"].items() if "global_test" not in name}
        assert mine["metrics"] == known
        assert mine["bytes"] == theirs["bytes"]
        assert mine["failures"] == []
    assert events(tmp_path / "sites") == [f"0 site-{n}: joined: 24 training images" for n in range(6)]


def test_sites_train_on_public_labels_of_other_classes_as_the_simulation_does(tiny: Make, tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = np.repeat(labels[:, None, None] * 60, 8, 1).repeat(8, 2).astype(np.uint8)
    deep = tmp_path / ("a-long-name-of-a-folder-" * 4)
    deep.mkdir()
    np.savez(deep / "shades.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    public = {"name": f"npz:{deep / 'shades.npz'}", "size": 20, "labelled": True, "own_classes": True}
    strategy = {"name": "fedmd", "public_epochs": 2, "private_epochs": 1}
    changes: dict[str, Any] = {"data.public": public, "strategy": strategy}
    run(tiny(changes), tmp_path / "simulated")
    config, sites = with_own_data(tiny(changes), tmp_path / "sets", changes)
    start(config, Loopback(config, sites), tmp_path / "sites")
    for mine, theirs in zip(metrics_of(tmp_path / "sites"), metrics_of(tmp_path / "simulated"), strict=True):
        assert mine["metrics"] == {name: v for name, v in theirs["metrics"].items() if "global_test" not in name}
        assert mine["bytes"] == theirs["bytes"]
        assert mine["failures"] == []


def test_a_model_that_the_config_does_not_list_is_a_sites_own_affair(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**PUBLIC, "strategy": {"name": "knfu"}, "model": {"names": ["mlp", "cnn"]}})
    grid = partitioned(config)
    grid.sites[IDS[0]]["model"] = "lenet5"
    grid.sites[IDS[1]]["model"] = "mlp"  # in the simulation it would be the other
    config = tiny({**PUBLIC, "strategy": {"name": "knfu"}, "model": {"names": ["mlp", "cnn"]}, "data.size": 16})
    grid = Loopback(config, grid.sites)
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert events(tmp_path / "run")[0] == "0 partition-0: joined: 24 training images, lenet5"
    kept, other = (versions_in(grid.contexts[id].state)[-1].state.array_records["model"] for id in IDS[:2])
    with torch.random.fork_rng():
        lenet, mlp = (
            build(name, {}, Form("image", (1, 16, 16)), 10, "model").state_dict() for name in ("lenet5", "mlp")
        )
    assert kept.keys() == lenet.keys()
    assert other.keys() == mlp.keys()


def test_a_site_with_folders_of_images_takes_part(tiny: Make, tmp_path: Path) -> None:
    """One site has folders (not of every class), the other a file."""
    digits = federate(tiny().data, 0)
    for label in (3, 8):
        (tmp_path / "scans" / str(label)).mkdir(parents=True)
        for number, image in enumerate(digits.train.inputs[digits.train.labels == label][:20]):
            Image.fromarray(image[0]).save(tmp_path / "scans" / str(label) / f"{number:02}.png")
    config = sites_config({"data.sites.count": 2, "data.channels": 1})
    sites = {5: {"data": f"images:{tmp_path / 'scans'}", "name": "folders"}, 9: {"data": "digits", "name": "file"}}
    start(config, Loopback(config, sites), tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert events(tmp_path / "run")[1] == "0 folders: joined: 32 training images"
    own = site_data(config.data, f"images:{tmp_path / 'scans'}", 0)
    assert set(own.train.labels) == set(own.own_test.labels) == {3, 8}
    assert own.image_shape == (1, 8, 8)


def test_a_wrong_engine_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for engine, message in (
        ({"name": "inline", "threads": "two"}, "engine.threads = 'two'"),
        ({"name": "ray", "device": "tpu"}, "engine.device = 'tpu'"),
    ):
        config = sites_config({"engine": engine})
        with pytest.raises(InputError, match=message):
            start(config, Loopback(config, {5: {"data": "digits"}}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("strategy", "every"), [("scaffold", 2), ("scaffold", 4), ("knfu", 2), ("fedlgd", 2)])
def test_a_server_that_goes_on_from_its_checkpoint_ends_as_if_it_had_not_stopped(
    tiny: Make, tmp_path: Path, strategy: str, every: int
) -> None:
    changes: dict[str, Any] = {"strategy": {"name": strategy}, "rounds": 5, "checkpoint.every": every}
    if strategy == "knfu":
        changes |= PUBLIC | MIXED
    if strategy == "fedlgd":
        changes |= FEDLGD
    config = tiny(changes)
    run(config, tmp_path / "whole")

    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    grids = []
    for number in (7, 8):
        grid = partitioned(config, run=number)
        for n, id in enumerate(IDS):
            grid.sites[id]["state"] = str(tmp_path / f"state-{n}")
        grids.append(grid)
    with pytest.raises(Crash):
        start(config, grids[0], tmp_path / "run", on_round=after_round(3, crash))
    start(config, grids[1], tmp_path / "run", resume=True)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert not [event for event in events(tmp_path / "run") if "joined" not in event and "is back" not in event]
    server = {p: b for p, b in checkpoint_bytes(tmp_path / "whole").items() if "server" in p}
    assert {p: b for p, b in checkpoint_bytes(tmp_path / "run").items() if "server" in p} == server


def test_only_the_run_that_was_begun_is_continued(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    with pytest.raises(InputError, match="there is no run of real sites to continue"):
        start(config, partitioned(config), tmp_path / "run", resume=True)
    start(config, partitioned(config), tmp_path / "run")
    with alone_in(tmp_path / "run"), pytest.raises(InputError, match="another process uses this folder"):
        start(config, partitioned(config), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="another run"):
        start(config, partitioned(config), tmp_path / "run")
    other = tiny({"rounds": 2, "train.batch_size": 9})
    with pytest.raises(InputError, match=r"begun with another config: train.batch_size was 8, is 9"):
        start(other, partitioned(other), tmp_path / "run", resume=True)
    longer = tiny({"rounds": 2})
    start(longer, partitioned(longer, run=8), tmp_path / "run", resume=True)
    assert [line["round"] for line in lines(tmp_path / "run")] == [0, 1, 2]


def test_a_server_without_data_measures_by_the_sites_alone(tiny: Make, tmp_path: Path) -> None:
    config, sites = with_own_data(tiny(), tmp_path / "sets", {})
    summary = start(config, Loopback(config, sites), tmp_path / "run")
    assert set(summary["final"]) == {"personal/accuracy", "personal/loss", "personal_after_fit/accuracy"}
    assert not (tmp_path / "run/figures/partition.png").exists()
    held = config.data.model_copy(update={"sites": config.data.sites.model_copy(update={"server": "digits"})})
    config = config.model_copy(update={"data": held})
    summary = start(config, Loopback(config, sites), tmp_path / "with-a-set")
    assert {"global/accuracy", "global/loss"} < set(summary["final"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"name": "central"}}, "data.sites: central needs the sites' images, which the server lacks"),
        ({"strategy": {"name": "knfu"}}, "strategy knfu needs a public set"),
        ({"strategy": {"name": "simclr"}}, "simclr measures features on labelled images of the server's own"),
        ({"strategy": {"name": "feddf"}}, "strategy feddf needs a public set"),
        ({"data.public": {"size": 3}}, "public needs a name"),
        ({"data.validation": {"size": 3}}, "validation images come from the server's own set"),
        ({"data.partition": {"scheme": "iid", "clients": 2}}, "partition has nothing to split"),
        ({"data.name": "digits"}, "set either name .* names .* or sites"),
        ({"data.sites.shape": [2, 8, 8]}, "data.sites.shape"),
        ({"data.sites.server": "digits", "data.sites.shape": [1, 9, 9]}, "data.sites.server: its images are 1x8x8"),
    ],
)
def test_what_needs_data_on_the_server_says_so_before_the_run(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    def attempt() -> None:
        config = sites_config(changes)
        start(config, Loopback(config, {5: {"data": "digits"}}), tmp_path / "run")

    with pytest.raises(InputError, match=message):
        attempt()
    assert not (tmp_path / "run").exists()


def test_a_config_of_real_sites_is_not_simulated(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no images to simulate with"):
        run(sites_config({}), tmp_path / "run")


def test_feddf_sends_each_site_the_model_of_its_architecture(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**PUBLIC, "strategy": {"name": "feddf", "steps": 2}, "model": {"names": ["mlp", "cnn"]}})
    grid = partitioned(config)
    for n, id in enumerate(IDS):
        grid.sites[id]["model"] = "cnn" if n < 4 else "mlp"
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []

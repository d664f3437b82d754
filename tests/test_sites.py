"""Real sites: the same results as a simulation, whoever is slow, leaves or comes back; and what is refused of them."""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PLUGINS, TINY, checkpoint_bytes, lines, merged
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from loopback import Clock, Loopback
from PIL import Image

from fedkd import InputError, Payload, RunError
from fedkd.config import CheckpointConfig, Config, Limits, parse_config
from fedkd.data.federation import federate, write_sets
from fedkd.data.site_data import site_data
from fedkd.deployment.introduction import Introduction, introduction_of
from fedkd.deployment.on_site import without_paths
from fedkd.deployment.serve import serve
from fedkd.deployment.site_state import keep_state, recall_state
from fedkd.messages.arrays import PayloadError, array_record
from fedkd.messages.flower import error_reply
from fedkd.models.build import build
from fedkd.runs.checkpoints import save_node
from fedkd.runs.run import run
from fedkd.runs.run_folder import alone_in

Make = Callable[..., Config]
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


def told(folder: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without what tells of real sites."""
    return [{key: value for key, value in line.items() if key != "events"} for line in lines(folder)]


def events(folder: Path) -> list[str]:
    return [f"{line['round']} {event['site']}: {event['event']}" for line in lines(folder) for event in line["events"]]


def failures(folder: Path) -> list[str]:
    found = [(line["round"], failure) for line in lines(folder) for failure in line["failures"]]
    return [f"{number} {f['node']} {f['action']}: {f['reason']}" for number, f in found]


# The same results as a simulation


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
    assert told(tmp_path / "sites") == told(tmp_path / "simulated")
    server = {p: b for p, b in checkpoint_bytes(tmp_path / "simulated").items() if "server" in p}
    assert {p: b for p, b in checkpoint_bytes(tmp_path / "sites").items() if "server" in p} == server
    assert server
    assert failures(tmp_path / "sites") == []


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


def test_sites_with_data_and_models_of_their_own_give_the_simulations_numbers(tiny: Make, tmp_path: Path) -> None:
    public = {"data.public": {"name": "digits", "size": 40}, "strategy": {"name": "knfu"}}
    simulated = tiny({**public, **MIXED})
    run(simulated, tmp_path / "simulated")
    config, sites = with_own_data(simulated, tmp_path / "sets", {**public, **MIXED})
    start(config, Loopback(config, sites), tmp_path / "sites")
    for mine, theirs in zip(told(tmp_path / "sites"), told(tmp_path / "simulated"), strict=True):
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
    for mine, theirs in zip(told(tmp_path / "sites"), told(tmp_path / "simulated"), strict=True):
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
    kept = grid.contexts[IDS[0]].state.array_records["model"]
    with torch.random.fork_rng():
        lenet, mlp = (build(name, {}, (1, 16, 16), 10, "model").state_dict() for name in ("lenet5", "mlp"))
    assert kept.keys() == lenet.keys()
    assert grid.contexts[IDS[1]].state.array_records["model"].keys() == mlp.keys()


def test_a_site_with_folders_of_images_takes_part(tiny: Make, tmp_path: Path) -> None:
    """One site has folders (not of every class), the other a file."""
    digits = federate(tiny().data, 0)
    for label in (3, 8):
        (tmp_path / "scans" / str(label)).mkdir(parents=True)
        for number, image in enumerate(digits.train.images[digits.train.labels == label][:20]):
            Image.fromarray(image[0]).save(tmp_path / "scans" / str(label) / f"{number:02}.png")
    config = sites_config({"data.sites.count": 2, "data.channels": 1})
    sites = {5: {"data": f"images:{tmp_path / 'scans'}", "name": "folders"}, 9: {"data": "digits", "name": "file"}}
    start(config, Loopback(config, sites), tmp_path / "run")
    assert failures(tmp_path / "run") == []
    assert events(tmp_path / "run")[1] == "0 folders: joined: 32 training images"
    own = site_data(config.data, f"images:{tmp_path / 'scans'}", 0)
    assert set(own.train.labels) == set(own.own_test.labels) == {3, 8}
    assert own.image_shape == (1, 8, 8)


# Who is refused, and told so on both sides


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
        ({"data": "npz:/no/such/file.npz"}, {}, "refused: InputError: data.name: there is no file <path>"),
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
    assert "another connected site has the same name" in refused(config, sites, tmp_path / "b", monkeypatch)
    sites[IDS[5]] = {"partition-id": 5, "data": "digits"}
    assert "config has images of its own (digits)" in refused(config, sites, tmp_path / "c", monkeypatch)
    monkeypatch.setattr("fedkd.deployment.sites.version", lambda name: "9.9")
    sites[IDS[5]] = {"partition-id": 5}
    assert "the server 9.9" in refused(config, sites, tmp_path / "d", monkeypatch)


def test_a_site_may_lack_a_class_but_not_have_another(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1] * 3)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "two.npz", classes=np.array(["7", "3"]), **arrays)
    config = sites_config({})
    data = site_data(config.data, f"npz:{tmp_path / 'two.npz'}", 0)
    assert data.classes == tuple(CLASSES)
    assert data.train_of(3).labels.tolist() == [7, 3] * 3
    assert data.test_of(0).labels.tolist() == [7, 3] * 3


def test_all_sites_and_the_server_normalise_alike() -> None:
    """A named set has pixel statistics of its own, a file has not."""
    for changes, mean in (({}, (0.5,)), ({"data.mean": [0.3]}, (0.3,))):
        config = sites_config(changes)
        assert site_data(config.data, "digits", 0).mean == federate(config.data, 0).mean == mean


def test_a_wrong_engine_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for engine, message in (
        ({"name": "inline", "threads": "two"}, "engine.threads = 'two'"),
        ({"name": "ray", "device": "tpu"}, "engine.device = 'tpu'"),
    ):
        config = sites_config({"engine": engine})
        with pytest.raises(InputError, match=message):
            start(config, Loopback(config, {5: {"data": "digits"}}), tmp_path / "run")
        assert not (tmp_path / "run").exists()


# Slow, gone, back


def test_a_late_reply_is_dropped_and_named_and_its_site_is_asked_nothing_before(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"timeout": 10.0, "rounds": 4, "evaluate.every": 9})
    grid = partitioned(config)
    until: dict[str, float] = {}

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        slow = node_config["partition-id"] == 3 and message.metadata.group_id == "2"
        return slow and clock.now < until.setdefault(message.metadata.message_id, clock.now + 25)

    grid.held = held
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == [
        "2 3 fit: no reply within 10 s",
        "3 3 fit: no reply within 10 s; it is still at 'fit' of round 2",
    ]
    late = [event for line in lines(tmp_path / "run") for event in line["events"] if "late" in event["event"]]
    assert [(event["node"], event["event"]) for event in late] == [(3, "late reply to 'fit' of round 2, dropped")]
    assert late[0]["bytes"] > 1000
    asked = [
        m.metadata.group_id for m in grid.sent if m.metadata.dst_node_id == IDS[3] and "fit" in m.metadata.message_type
    ]
    assert asked == ["1", "2", "4"]  # it got no request while it was at another
    assert lines(tmp_path / "run")[4]["failures"] == []


def test_too_few_replies_end_the_run_and_keep_what_there_is(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    config = tiny({"timeout": 10.0, "rounds": 3, "min_replies": 6, "checkpoint.every": 1})
    grid = partitioned(config)
    grid.held = lambda message, node: (
        node["partition-id"] == 1
        and message.metadata.message_type == "train.fit"
        and (message.metadata.group_id == "2")
    )
    with pytest.raises(RunError, match="5 of 6 replies are good, min_replies is 6. node 1: no reply within 10 s"):
        start(config, grid, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("failed", 1)
    grid = partitioned(config, run=8)
    start(config, grid, tmp_path / "run", resume=True)
    run(config, tmp_path / "simulated")
    assert told(tmp_path / "run") == told(tmp_path / "simulated")


def after_round(number: int, action: Callable[[], None]) -> Callable[..., None]:
    """Return an `on_round` that acts when a round has ended."""
    return lambda record, environment: action() if record.number == number else None


def test_a_site_that_leaves_fails_by_name_and_takes_part_when_it_is_back(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 4, "strategy": {"name": "scaffold"}})
    grid = partitioned(config)

    def on_round(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.online.discard(IDS[2])
        if record.number == 2:
            grid.online.add(IDS[2])
            grid.restart(IDS[2])

    start(config, grid, tmp_path / "run", on_round=on_round)
    assert failures(tmp_path / "run") == ["2 2 fit: is not connected", "2 2 evaluate: is not connected"]
    assert events(tmp_path / "run")[6:] == [
        "3 partition-2: is back: 24 training images",
        "3 partition-2: its state was lost; it starts afresh",
    ]
    assert lines(tmp_path / "run")[3]["metrics"]["personal/accuracy"] > 0


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
        results[name] = told(tmp_path / f"{name}-run")
    assert results["whole"] == results["restarted"]
    assert events(tmp_path / "restarted-run")[6:] == ["3 partition-2: is back: 24 training images"]
    run(config, tmp_path / "simulated")
    assert results["whole"] == told(tmp_path / "simulated")
    kept = sorted(p.name for p in (tmp_path / "whole/state-2").rglob("*.safetensors"))
    assert kept == ["round-000003.safetensors", "round-000004.safetensors"]


def test_a_request_that_a_restart_swallowed_does_not_hold_the_round_up(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"rounds": 3, "evaluate.every": 9})  # no timeout: it would wait for ever
    grid = partitioned(config)
    seen: list[Message] = []

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        if node_config["partition-id"] == 4 and message.metadata.group_id == "2" and not seen:
            seen.append(message)
            grid.starts[IDS[4]] += 1
            return True
        return message in seen

    grid.held = held
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["2 4 fit: its SuperNode was started anew during the request"]
    assert lines(tmp_path / "run")[3]["failures"] == []


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


# The server restarts


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
    assert told(tmp_path / "run") == told(tmp_path / "whole")
    assert not [event for event in events(tmp_path / "run") if "joined" not in event and "is back" not in event]
    server = {p: b for p, b in checkpoint_bytes(tmp_path / "whole").items() if "server" in p}
    assert {p: b for p, b in checkpoint_bytes(tmp_path / "run").items() if "server" in p} == server


def test_only_the_run_that_was_begun_is_continued(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    with pytest.raises(InputError, match="there is no run of real sites to continue"):
        start(config, partitioned(config), tmp_path / "run", resume=True)
    start(config, partitioned(config), tmp_path / "run")
    with alone_in(tmp_path / "run"), pytest.raises(InputError, match="another process is at work there"):
        start(config, partitioned(config), tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="another run"):
        start(config, partitioned(config), tmp_path / "run")
    other = tiny({"rounds": 2, "train.batch_size": 9})
    with pytest.raises(InputError, match=r"begun with another config: train.batch_size was 8, is 9"):
        start(other, partitioned(other), tmp_path / "run", resume=True)
    longer = tiny({"rounds": 2})
    start(longer, partitioned(longer, run=8), tmp_path / "run", resume=True)
    assert [line["round"] for line in lines(tmp_path / "run")] == [0, 1, 2]


# A server without data


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
        ({"data.validation": {"size": 3}}, "validation is taken out of sites.server"),
        ({"data.partition": {"scheme": "iid", "clients": 2}}, "there is nothing for partition to split"),
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


# Nothing that a site sends is trusted


def test_a_site_cannot_claim_more_images_than_it_told_of(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == IDS[3] and message.metadata.message_type == "train.fit":
            reply.content["numbers"] = MetricRecord({"examples": 25.0, "loss": 1.0})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 3 fit: bad reply: number 'examples' is 25.0, valid is 1.0 to 24"]


def test_a_label_histogram_cannot_count_more_images_than_there_are(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": "fedftg"}})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == IDS[3] and message.metadata.message_type == "train.label_counts":
            counts = torch.tensor([3] * 9 + [-2], dtype=torch.int32) if negative else torch.full((10,), 3).int()
            reply.content["statistics"] = array_record({"label_counts": counts})
        return reply

    grid.tampered = tampered
    for negative, reason in ((False, "counts 30 images, the node has 24"), (True, "has values outside 0.0 to")):
        start(config, grid, tmp_path / f"run-{negative}")
        (failure,) = failures(tmp_path / f"run-{negative}")
        assert failure.startswith("1 3 label_counts: bad reply: statistics 'label_counts'")
        assert reason in failure
        grid = partitioned(config)
        grid.tampered = tampered


def test_a_site_cannot_speak_over_the_servers_metrics(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    reports: dict[int, dict[str, float]] = {
        IDS[0]: {"global/accuracy": 1.0}, IDS[1]: {"personal/loss": math.inf}, IDS[2]: {"\x1b[2J/x": 1.0},
        IDS[3]: {f"x/{n}": 1.0 for n in range(101)}, IDS[4]: {"personal/accuracy": 1.5},
    }  # fmt: skip
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id in reports:
            reply.content["report"] = MetricRecord(dict(reports[message.metadata.dst_node_id]))
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == [
        "1 0 fit: bad reply: metric 'global/accuracy' is the server's to report",
        "1 1 fit: bad reply: metric 'personal/loss' is inf",
        "1 2 fit: bad reply: metric '[2J/x' is not named scope/metric",
        "1 3 fit: bad reply: 101 metrics, 100 at most",
        "1 4 fit: bad reply: metric 'personal/accuracy' is 1.5, out of range",
    ]


def test_an_error_text_of_a_site_is_shown_on_one_line_and_without_paths(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": f"{PLUGINS / 'misbehave.py'}:Misbehave"}})
    start(config, partitioned(config), tmp_path / "run")
    (first, *_) = failures(tmp_path / "run")
    assert first == "1 1 fit: ValueError: the disk is full (misbehave.py:24)"

    def broken(self: Any, request: Payload) -> Payload:
        raise OSError("cannot read\n/srv/Anna.png\x1b[2J")

    config = tiny({"rounds": 1})
    monkeypatch.setattr("fedkd.core.client.GlobalModelClient.fit", broken)
    with pytest.raises(RunError):
        start(config, partitioned(config), tmp_path / "broken")
    reasons = [event["error"] for event in [json.loads((tmp_path / "broken/summary.json").read_text())]]
    assert "OSError: cannot read <path>" in reasons[0]
    assert "Anna" not in reasons[0]
    assert "\x1b" not in reasons[0]
    assert "/srv/Anna.png" in caplog.text
    text = "ValueError: /srv/ward 3/Anna M 1950.png is 30 x 40; C:\\scans\\b.dcm, rel/d.npz and cell.tiff (x.py:3)"
    assert without_paths(text) == "ValueError: <path> is 30 x 40; <path>, <path> and <path> (x.py:3)"
    for name in (
        "'/srv/scans/Anna Miller 1950.png'",
        '"Anna Miller.dcm"',
        "scan_Miller.dcm",
        "Miller.nii.gz",
        "/srv/a",
    ):
        assert without_paths(f"cannot read {name}, sorry") == "cannot read <path>, sorry"
    assert without_paths("weights 'layers.0.weight' is 3.5 of 1/2") == "weights 'layers.0.weight' is 3.5 of <path>"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"strings": {"name": "../../x"}}, "string 'name' is '../../x'"),
        ({"strings": {"classes": "[" * 5000}}, "string 'classes' is no list of names"),
        ({"strings": {"classes": "[1, 2]"}}, "string 'classes' is no list of names"),
        ({"numbers": {"images": -1.0}}, "number 'images' is -1.0"),
        ({"numbers": {"images": math.nan}}, "number 'images' is nan"),
        ({"numbers": {"more": 1.0}}, "numbers with 'more', which nobody asked for"),
        ({"strings": {"model": "x" * 2000}}, "payload of .* bytes is over the limit"),
    ],
)
def test_bad_introductions_are_refused(payload: dict[str, dict[str, Any]], message: str) -> None:
    numbers = dict.fromkeys(("images", "test_images", "channels", "height", "width", "partition"), 1.0)
    strings = {"name": "a", "model": "", "version": "1", "classes": '["0", "1"]'}
    assert introduction_of(Payload(numbers=numbers, strings=strings).to_records(), Limits(1000, {})).classes == (
        "0",
        "1",
    )
    bad = Payload(numbers={**numbers, **payload.get("numbers", {})}, strings={**strings, **payload.get("strings", {})})
    limit = 10**6 if "classes" in payload.get("strings", {}) else 1000
    with pytest.raises(PayloadError, match=message):
        introduction_of(bad.to_records(), Limits(limit, {}))


def test_names_of_classes_and_models_arrive_as_they_are_however_odd() -> None:
    told = Introduction("a", -1, "y" * 300, 1, 1, ("x" * 300, "two\nlines", " "), (1, 8, 8), "1")
    assert introduction_of(told.to_payload().to_records(), Limits(10**6, {})) == told


def test_a_federation_cannot_be_named_out_of_a_sites_state_folder(tiny: Make, tmp_path: Path) -> None:
    config = tiny()
    grid = partitioned(config)
    grid.sites[5] = {"partition-id": 1, "state": str(tmp_path / "state")}
    told = ConfigRecord({"federation": "../../etc", "node": 1, "first_round": 0})
    reply = grid.app(Message(RecordDict({"round": told}), 5, "train.fit", group_id="1"), grid._fresh(5))
    assert reply.has_error()
    assert "which is no name of one" in reply.error.reason


# What a site keeps


def state_of(value: float) -> RecordDict:
    return RecordDict({"model": array_record({"w": torch.tensor([value])})})


def value_of(state: RecordDict) -> float | None:
    return None if not state else float(state.array_records["model"]["w"].numpy()[0])


def test_a_site_keeps_what_a_restarted_server_can_ask_for(tmp_path: Path) -> None:
    home = tmp_path / "state"
    assert value_of(recall_state(home, 1, 0)[0]) is None
    every = CheckpointConfig(every=3, keep=1)
    for number in range(12):
        if number not in (6, 9):  # sits these rounds out
            keep_state(home, 1, number, state_of(number), every, 0)
            keep_state(home, 1, number, state_of(number + 0.5), every, 0)
    assert [p.name for p in sorted(home.glob("round-*"))] == [f"round-{n:06d}.safetensors" for n in (5, 8, 10, 11)]
    assert value_of(recall_state(home, 1, 0)[0]) == 11.5  # the SuperNode restarted
    assert value_of(recall_state(home, 2, 11)[0]) == 10.5  # the server was interrupted in round 11, and kept round 10
    assert value_of(recall_state(home, 3, 10)[0]) == 8.5  # the server did, and goes on after round 9
    assert value_of(recall_state(home, 4, 7)[0]) == 5.5  # and again, after round 6
    assert [p.name for p in sorted(home.glob("round-*"))] == ["round-000005.safetensors"]


def test_a_run_that_goes_on_between_two_marks_can_go_back_to_where_it_did(tmp_path: Path) -> None:
    every = CheckpointConfig(every=10, keep=1)
    for number in range(16):
        keep_state(
            tmp_path, 1, number, state_of(number), every, 0
        )  # it ended at round 15, where the server checkpoints
    assert value_of(recall_state(tmp_path, 2, 16)[0]) == 15
    keep_state(tmp_path, 2, 16, state_of(16), every, 16)
    assert value_of(recall_state(tmp_path, 3, 16)[0]) == 15


def test_a_torn_note_of_the_run_disables_nothing(tmp_path: Path) -> None:
    every = CheckpointConfig(every=1, keep=1)
    keep_state(tmp_path, 1, 1, state_of(1), every, 0)
    for torn in ("", "[]", "{", '{"x": 1}'):
        (tmp_path / "run.json").write_text(torn)
        assert value_of(recall_state(tmp_path, 1, 2)[0]) == 1
        keep_state(tmp_path, 1, 1, state_of(1), every, 0)


def test_a_damaged_state_is_named_and_the_one_before_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    every = CheckpointConfig(every=1, keep=1)
    for number in (1, 2):
        keep_state(tmp_path, 1, number, state_of(number), every, 0)
    save_node(tmp_path / "round-000002.safetensors", state_of(2))
    (tmp_path / "round-000002.safetensors").write_bytes(b"torn")
    state, damaged = recall_state(tmp_path, 1, 0)
    assert (value_of(state), damaged) == (1.0, True)
    assert "round-000002.safetensors is damaged" in caplog.text


# What fresh eyes found


def test_a_site_that_restarts_while_it_is_late_is_asked_again(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedkd.deployment.sites.time", Clock())
    config = tiny({"timeout": 10.0, "rounds": 4, "evaluate.every": 9})
    grid = partitioned(config)
    grid.held = lambda message, node: (
        node["partition-id"] == 3
        and message.metadata.group_id == "2"
        and (message.metadata.message_type == "train.fit")
    )
    start(config, grid, tmp_path / "run", on_round=after_round(2, lambda: grid.restart(IDS[3])))
    assert failures(tmp_path / "run") == ["2 3 fit: no reply within 10 s"]


def test_a_reply_that_never_comes_is_given_up(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("fedkd.deployment.sites.time", clock)
    config = tiny({"timeout": 10.0, "rounds": 10, "evaluate.every": 99})
    grid = partitioned(config)
    sent: dict[str, float] = {}

    def held(message: Message, node_config: dict[str, Any]) -> bool:
        if node_config["partition-id"] != 3 or message.metadata.group_id != "2":
            return False
        assert message.metadata.ttl == 60
        return clock.now < sent.setdefault(message.metadata.message_id, clock.now) + message.metadata.ttl

    grid.held = held
    grid.tampered = lambda message, reply: (
        error_reply(message, "expired")
        if message.metadata.dst_node_id == IDS[3] and message.metadata.group_id == "2"
        else reply
    )
    start(config, grid, tmp_path / "run")
    assert len(failures(tmp_path / "run")) == 5
    assert events(tmp_path / "run")[-1].endswith("partition-3: no reply to 'fit' of round 2, given up")
    assert lines(tmp_path / "run")[10]["failures"] == []


def test_a_reply_is_known_by_what_was_asked_and_not_by_what_it_says(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    run(config, tmp_path / "simulated")
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        reply.metadata.__dict__["_reply_to_message_id"] = "nonsense"
        reply.metadata.__dict__["_src_node_id"] = IDS[0]
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert told(tmp_path / "run") == told(tmp_path / "simulated")
    pull = grid.pull_messages

    def unreadable(message_ids: Iterable[str]) -> list[Message]:
        found = pull(message_ids)
        if any(
            grid.sent[int(id)].metadata.dst_node_id == IDS[2] and "fit" in grid.sent[int(id)].metadata.message_type
            for id in message_ids
        ):
            raise ValueError("no such object")
        return found

    grid = partitioned(config)
    pull = grid.pull_messages
    grid.pull_messages = unreadable  # type: ignore[method-assign]
    start(config, grid, tmp_path / "unreadable")
    assert failures(tmp_path / "unreadable") == ["1 2 fit: its reply cannot be read: ValueError: no such object"]


def test_a_supernode_that_restarts_before_the_start_counts_once(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)
    grid.online = {IDS[0]}
    restarts = [0]

    class Impatient(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            restarts[0] += 1
            if restarts[0] < 8:
                grid.restart(IDS[0])
            else:  # it goes, the others come, it comes back
                grid.online = set(IDS) if restarts[0] > 12 else set(IDS) - {IDS[0]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.deployment.sites.time", Impatient())
        start(config, grid, tmp_path / "run")
    assert lines(tmp_path / "run")[0]["cohort"] == list(range(6))
    assert failures(tmp_path / "run") == []


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


def test_what_a_stock_strategy_gets_is_what_was_checked(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": "flwr.serverapp.strategy:FedAdam"}})
    run(config, tmp_path / "simulated")
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train":
            return reply
        if message.metadata.dst_node_id == IDS[0]:
            reply.content["round"] = MetricRecord({"a": 1.0})
        if message.metadata.dst_node_id == IDS[1]:
            reply.content["weights"] = reply.content.pop("arrays")
        if message.metadata.dst_node_id == IDS[2]:
            arrays = reply.content.pop("arrays")
            reply.content["arrays"] = type(arrays)(dict(reversed(arrays.items())))
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert told(tmp_path / "run") == told(tmp_path / "simulated")
    grid = partitioned(config)

    def lists(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == IDS[0]:
            reply.content["more"] = MetricRecord({"a": [1.0]})
        return reply

    grid.tampered = lists
    start(config, grid, tmp_path / "lists")
    assert failures(tmp_path / "lists") == ["1 0 train: bad reply: more 'a' is neither a number nor a text"]


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
    five = config.data.sites.model_copy(update={"count": 5})  # type: ignore[union-attr]
    config = config.model_copy(update={"data": config.data.model_copy(update={"sites": five})})
    grid = Loopback(config, sites)
    grid.online.discard(IDS[5])

    def on_round(record: Any, environment: Any) -> None:
        if record.number == 1:
            grid.online.add(IDS[5])
        if record.number == 2:
            grid.restart(IDS[2])

    start(config, grid, tmp_path / "run", on_round=on_round)
    found = lines(tmp_path / "run")
    assert [line["cohort"] for line in found] == [list(range(5))] * 2 + [list(range(6))] * 3
    late = [failure for failure in failures(tmp_path / "run") if not failure.startswith("3 2")]
    assert late == []  # in the round of its return a site may lack what the server shares once; it gets it in the next
    assert {"2", "5"} <= found[4]["nodes"]["personal/accuracy"].keys()


@pytest.mark.parametrize(
    "changes",
    [{"strategy": {"name": "vhl", "noise_per_class": 2, "generator_width": 8}, "model": FEDLGD["model"]}, FEDLGD],
    ids=lambda changes: changes["strategy"]["name"],
)
def test_a_federation_goes_on_whose_sites_have_all_lost_what_the_server_shares_once(
    tiny: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The server is started anew, and no site has a folder for its state: who is known to hold it has it no more."""
    config = tiny({**changes, "rounds": 2})
    start(config, partitioned(config), tmp_path / "run")
    longer = config.model_copy(update={"rounds": 4})
    start(longer, partitioned(longer, run=8), tmp_path / "run", resume=True)
    found = lines(tmp_path / "run")
    assert [line["round"] for line in found] == [0, 1, 2, 3, 4]
    assert sorted(failure["node"] for failure in found[3]["failures"]) == list(range(6))
    assert found[4]["failures"] == []


def test_feddf_sends_each_site_the_model_of_its_architecture(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**PUBLIC, "strategy": {"name": "feddf", "steps": 2}, "model": {"names": ["mlp", "cnn"]}})
    grid = partitioned(config)
    for n, id in enumerate(IDS):
        grid.sites[id]["model"] = "cnn" if n < 4 else "mlp"
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []


def test_fednovas_steps_are_bounded_by_the_images(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": "fednova"}})
    run(config, tmp_path / "simulated")
    grid = partitioned(config)
    start(config, grid, tmp_path / "sites")
    assert told(tmp_path / "sites") == told(tmp_path / "simulated")
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id == IDS[1]:
            reply.content["numbers"] = MetricRecord({"examples": 24.0, "loss": 1.0, "normaliser": 1e6})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 1 fit: bad reply: number 'normaliser' is 1000000.0, valid is 1 to 3.0"]


def test_names_of_three_megabytes_are_not_repeated(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id == IDS[1]:
            reply.content["numbers"] = MetricRecord({"examples": 24.0, "loss": 1.0, "x" * 3 * 10**6: 1.0})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    (failure,) = failures(tmp_path / "run")
    assert len(failure) < 450


@pytest.mark.parametrize(
    "about", [ConfigRecord({"trouble": ["lost"]}), ConfigRecord({"keeps": 7.5}), MetricRecord({"x": 1})]
)
def test_what_a_site_says_of_itself_may_be_anything(tiny: Make, tmp_path: Path, about: Any) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit":
            reply.content["site"] = about
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == []


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

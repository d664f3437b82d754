"""Engines carry messages and change no result: the same bytes inline, on any number of workers, and after faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from flwr.app import ArrayRecord, Message, RecordDict
from helpers import PLUGINS, Make, checkpoint_bytes, lines

from fedkd import InputError, Payload
from fedkd.core.setup import make_setup
from fedkd.runs.run import make_engine, resume, run

pytestmark = pytest.mark.xdist_group("ray")


UNEQUAL = {
    "model": {"names": [{"name": "mlp", "hidden": [16]}, "cnn", "resnet8"]},
    "data.public": {"size": 60},
    "strategy": {"name": "fedmd", "subset_size": 40, "public_epochs": 0, "private_epochs": 1},
}


RUNS = {
    "fedprox, 7 of 12 nodes": {
        "cohort": 7,
        "data.partition.clients": 12,
        "data.augment": "crop_flip",
        "model": {"name": "resnet8"},
        "strategy": {"name": "fedprox", "mu": 0.1},
    },
    "fedmd, three architectures": UNEQUAL,
    "comet, 4 of 6 nodes": {**UNEQUAL, "cohort": 4, "strategy": {"name": "comet", "subset_size": 40}},
    "fedftg over scaffold, 7 of 12 nodes": {
        "cohort": 7,
        "data.partition.clients": 12,
        "model": {"name": "convnet", "channels": [8], "norm": "batch"},
        "strategy": {
            "name": "fedftg",
            "iterations": 2,
            "batch_size": 20,
            "noise": 8,
            "generator_width": 4,
            "base": {"name": "scaffold"},
        },
    },
    "fedx over byol, 4 of 6 nodes": {
        "cohort": 4,
        "data.validation": {"size": 200},
        "train.batch_size": 8,
        "model": {"name": "convnet", "channels": [8], "norm": "batch"},
        "strategy": {"name": "fedx", "base": {"name": "byol", "aug": "simclr", "width": 8, "probe_epochs": 2}},
    },
    "fedlgd, 4 of 6 nodes": {
        "cohort": 4,
        "model": {"name": "convnet", "channels": [8]},
        "strategy": {
            "name": "fedlgd",
            "ipc": 2,
            "initial_steps": 2,
            "local_steps": 2,
            "global_steps": 2,
            "gap": 1,
        },
    },
    "vhl on virtual images, 4 of 6 nodes": {
        "cohort": 4,
        "model": {"name": "convnet", "channels": [8]},
        "strategy": {
            "name": "fedavg_virtual",
            "ipc": 2,
            "initial_steps": 2,
            "base": {"name": "vhl", "noise_per_class": 2, "generator_width": 8},
        },
    },
    "flower's FedAdam": {"strategy": {"name": "flwr.serverapp.strategy:FedAdam"}, "cohort": 4},
}


@pytest.mark.parametrize(
    "changes",
    [pytest.param(c, id=n, marks=[] if n.startswith("fedprox") else pytest.mark.slow) for n, c in RUNS.items()],
)
@pytest.mark.usefixtures("cluster")
def test_inline_and_one_and_two_workers_give_the_same_bytes(tiny: Make, tmp_path: Path, changes: dict) -> None:
    engines = {"inline": {"name": "inline"}, **{f"ray{n}": {"name": "ray", "workers": n} for n in (1, 2)}}
    for name, engine in engines.items():
        run(tiny({**changes, "engine": engine}), tmp_path / name)
    for name in ("ray1", "ray2"):
        assert lines(tmp_path / name) == lines(tmp_path / "inline")
        assert checkpoint_bytes(tmp_path / name) == checkpoint_bytes(tmp_path / "inline")
    assert len(checkpoint_bytes(tmp_path / "inline")) >= 2


@pytest.mark.usefixtures("cluster")
def test_failures_are_the_same_on_workers(tiny: Make, tmp_path: Path) -> None:
    changes = {"strategy": {"name": f"{PLUGINS / 'misbehave.py'}:Misbehave"}, "payload_limit": 100_000}
    run(tiny(changes), tmp_path / "inline")
    run(tiny({**changes, "engine": {"name": "ray", "workers": 2}}), tmp_path / "ray")
    assert lines(tmp_path / "ray") == lines(tmp_path / "inline")
    assert len(lines(tmp_path / "ray")[1]["failures"]) == 5


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_dies_is_replaced_and_nothing_changes(tiny: Make, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    changes = {"strategy": {"name": f"{PLUGINS / 'die.py'}:Die", "deaths": str(deaths)}, "rounds": 3}
    run(tiny(changes), tmp_path / "quiet")
    deaths.write_text("once\ntwice")
    run(tiny({**changes, "engine": {"name": "ray", "workers": 2}}), tmp_path / "deadly")
    assert deaths.read_text() == ""
    assert lines(tmp_path / "deadly") == lines(tmp_path / "quiet")
    assert checkpoint_bytes(tmp_path / "deadly") == checkpoint_bytes(tmp_path / "quiet")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_clients_that_kill_every_worker_are_named_failures(tiny: Make, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.write_text("\n".join(["again"] * 99))
    changes = {"strategy": {"name": f"{PLUGINS / 'die.py'}:Die", "deaths": str(deaths)}}
    run(tiny({**changes, "engine": {"name": "ray", "workers": 2}}), tmp_path / "run")
    failures = lines(tmp_path / "run")[2]["failures"]
    assert [failure["node"] for failure in failures] == [3]  # not the others of its block
    assert "its worker died" in failures[0]["reason"]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_interrupted_run_continues_to_the_same_end_on_any_engine(tiny: Make, tmp_path: Path) -> None:
    when = tmp_path / "when"
    strategy = {**UNEQUAL["strategy"], "name": f"{PLUGINS / 'stop.py'}:Stop", "when": str(when)}
    changes = {**UNEQUAL, "strategy": strategy, "rounds": 5, "checkpoint": {"every": 2}, "cohort": 4}
    run(tiny(changes), tmp_path / "whole")
    for name, engine in (("inline", {"name": "inline"}), ("ray", {"name": "ray", "workers": 2})):
        when.write_text("4")
        with pytest.raises(KeyboardInterrupt):
            run(tiny({**changes, "engine": engine}), tmp_path / name)
        assert '"status": "interrupted"' in (tmp_path / name / "summary.json").read_text()
        assert [line["round"] for line in lines(tmp_path / name)] == [0, 1, 2, 3]
        when.unlink()
        assert resume(tmp_path / name)["status"] == "completed"
        assert lines(tmp_path / name) == lines(tmp_path / "whole")
        assert checkpoint_bytes(tmp_path / name) == checkpoint_bytes(tmp_path / "whole")


def test_the_tests_of_a_group_run_on_one_worker(request: pytest.FixtureRequest) -> None:
    if getattr(request.config.option, "loadgroup", False):  # as pytest-xdist tells where a test belongs
        assert request.node.nodeid.endswith("@ray")


def test_flowers_own_interface_works(tiny: Make) -> None:
    setup = make_setup(tiny())
    with make_engine(setup) as grid:
        assert list(grid.get_node_ids()) == list(range(6))
        weights = Payload(weights=setup.environment.initial_weights()).to_records()
        ids = list(grid.push_messages([grid.create_message(weights, "train.fit", node, "1") for node in (4, 2)]))
        replies = {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(ids)}
        assert [replies[i].metadata.src_node_id for i in ids] == [4, 2]
        assert isinstance(replies[ids[0]].content["weights"], ArrayRecord)
        (bad,) = grid.send_and_receive([Message(RecordDict(), 0, "train.nothing", group_id="1")])
        assert "No train function registered with name 'nothing'" in (bad.error.reason or "")


@pytest.mark.usefixtures("cluster")
def test_more_workers_than_fit_are_refused_before_anything_is_written(tiny: Make, tmp_path: Path) -> None:
    for engine, message in [
        ({"workers": 3}, "engine.workers = 3: only 2 fit; the cluster has 2 CPUs and 0 GPUs"),
        ({"gpus_per_worker": 0.5}, "no worker fits: the cluster has 2 CPUs and 0 GPUs"),
        ({"workers": 0}, "engine.workers"),
    ]:
        with pytest.raises(InputError, match=message):
            run(tiny({"engine": {"name": "ray", **engine}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert ray.is_initialized()  # it was ours, so the engine leaves it


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_timeout_makes_late_nodes_failures_and_the_run_goes_on(tiny: Make, tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "import threading\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from fedkd import GlobalModelClient\n"
        "from fedkd.strategies.local import Local, LocalClient\n"
        "class SlowClient(LocalClient):\n"
        "    def fit(self, request):\n"
        "        if self.node == 5 and self.round == 1:\n"
        "            threading.Event().wait(90)\n"
        "        return super().fit(request)\n"
        "@dataclass(kw_only=True)\n"
        "class Slow(Local):\n"
        "    client: ClassVar = SlowClient\n"
    )
    changes = {"strategy": {"name": f"{file}:Slow"}, "timeout": 15.0, "evaluate.every": 9, "rounds": 1}
    engine = {"name": "ray", "workers": 2}
    run(tiny({**changes, "engine": engine}), tmp_path / "run")
    reasons = {f["node"]: f["reason"] for f in lines(tmp_path / "run")[1]["failures"]}
    assert reasons == {5: "no reply within 15 s"}


@pytest.mark.usefixtures("cluster")
def test_a_request_does_not_wait_for_the_readers_of_another(tiny: Make) -> None:
    setup = make_setup(tiny({"engine": {"name": "ray", "workers": 2}}))
    weights = Payload(weights=setup.environment.initial_weights()).to_records()
    with make_engine(setup) as grid:
        measured = grid.exchange([Message(weights, n, "train.evaluate", group_id="1") for n in [*range(6)] * 2], None)
        trained = list(grid.exchange([Message(weights, n, "train.fit", group_id="1") for n in (1, 4)], None))
        assert [reply.metadata.src_node_id for reply in trained] == [1, 4]
        assert [reply.metadata.src_node_id for reply in measured] == [*range(6)] * 2
        abandoned = grid.exchange([Message(weights, n, "train.fit", group_id="1") for n in range(6)], None)
        next(abandoned)
        abandoned.close()
        assert len(list(grid.exchange([Message(weights, 3, "train.fit", group_id="1")], None))) == 1

"""Runs of many strategies: they learn, go on after an interruption, and heed neither order nor absence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Make, halves_are_the_whole, lines
from helpers.bases import BASES, SMALL
from helpers.hand import UNEQUAL, setting
from helpers.loopback import Loopback
from helpers.self_supervised import SELF_SUPERVISED, SSL
from helpers.virtual_images import LGD, NET, QUICK

from fedkd.deployment.serve import serve
from fedkd.runs.checkpoints import latest, load_server
from fedkd.runs.run import run

RUNS: dict[str, dict[str, Any]] = {
    **{name: {"name": name, **BASES[name]} for name in ("feddyn", "scaffold", "moon", "fednova")},
    "fedgen": {"name": "fedgen", "generator_steps": 10, "alpha": 1.0, "beta": 1.0},
    **{f"{name}, official": {"name": name, "official_quirks": True} for name in ("fedprox", "feddyn", "scaffold")},
    **{f"fedftg over {name}": {"name": "fedftg", **SMALL, "base": {"name": name, **o}} for name, o in BASES.items()},
    "fedftg over scaffold, official": {
        "name": "fedftg", **SMALL, "base": {"name": "scaffold", "official_quirks": True},
    },
    "ema over fedavg": {"name": "weight_ema", "decay": 0.5},
    "ema over fedftg": {"name": "weight_ema", "decay": 0.5, "base": {"name": "fedftg", **SMALL}},
}  # fmt: skip


CONVNET = {"name": "convnet", "channels": [8], "norm": "batch", "pooling": "max"}


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_method_learns_and_goes_on_after_an_interruption_as_if_there_had_been_none(
    tiny: Make, tmp_path: Path, case: str
) -> None:
    changes = {
        "strategy": RUNS[case], "data.partition": {**UNEQUAL, "alpha": 1.0}, "cohort": 4, "rounds": 6,
        "train": {"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}, "lr_decay": 0.9},
        "checkpoint": {"every": 1}, "model": CONVNET, "data.train_per_class": 60,
    }  # fmt: skip
    summary = run(tiny(changes), tmp_path / "whole")
    assert summary["failures"] == 0
    whole = lines(tmp_path / "whole")
    assert whole[-1]["metrics"]["global/accuracy"] > whole[0]["metrics"]["global/accuracy"] + 0.2
    halves_are_the_whole(tiny(changes), tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize("name", ["feddyn", "scaffold", "moon"])
def test_a_training_that_diverges_once_leaves_the_nodes_state_as_it_was(tiny: Make, tmp_path: Path, name: str) -> None:
    plugin = tmp_path / "diverge.py"
    cls, module = {"feddyn": "FedDyn", "scaffold": "Scaffold", "moon": "MOON"}[name], name
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        f"from fedkd.strategies.{module} import {cls}, {cls}Client\n"
        f"class Client({cls}Client):\n"
        "    def train_locally(self, *args, **kwargs):\n"
        "        value = super().train_locally(*args, **kwargs)\n"
        "        if self.node == 2 and self.round == 2:\n"
        "            with torch.no_grad():\n"
        "                next(self.model.parameters()).fill_(float('nan'))\n"
        "        return value\n"
        "@dataclass(kw_only=True)\n"
        f"class Diverge({cls}):\n"
        "    client = Client\n"
    )
    run(tiny({"strategy": {"name": f"{plugin}:Diverge"}, "rounds": 3}), tmp_path / "run")
    found = lines(tmp_path / "run")
    assert [[f["node"] for f in line["failures"]] for line in found] == [[], [], [2], []]
    assert "local training has diverged" in found[2]["failures"][0]["reason"]


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "feddyn", "scaffold", "moon"])
def test_a_round_that_a_node_sits_out_changes_nothing_of_its_state(tiny: Make, tmp_path: Path, name: str) -> None:
    strategy = {"name": "fedftg", **SMALL, "base": {"name": name, **BASES[name]}}
    run(setting(tiny, strategy, rounds=4), tmp_path / "run")
    kept = [
        {p.stem: p.read_bytes() for p in sorted((tmp_path / "run/checkpoints" / f"round-{n:06d}/nodes").glob("*"))}
        for n in range(1, 5)
    ]
    seen: set[int] = set()
    changed = 0
    for number, (before, after) in enumerate(zip([{}, *kept], kept, strict=False), start=1):
        cohort = lines(tmp_path / "run")[number]["cohort"]
        seen |= set(cohort)
        if name in ("feddyn", "scaffold", "moon"):
            assert set(after) == {str(node) for node in seen}
        else:
            assert after == {}
        for node, content in after.items():
            assert (content != before.get(node)) == (int(node) in cohort)
            changed += node in before and content != before[node]
    assert changed or not kept[-1]


@pytest.mark.parametrize("base", [pytest.param(b, marks=[] if b == "scaffold" else pytest.mark.slow) for b in BASES])
def test_the_order_of_replies_changes_nothing(tiny: Make, tmp_path: Path, base: str) -> None:
    config = setting(tiny, {"name": "fedftg", **SMALL, "base": {"name": base, **BASES[base]}})
    run(config, tmp_path / "forwards")
    grid = Loopback(config, {100 - node: {"partition-id": node} for node in range(6)})  # its replies come in reverse
    serve(grid, config, tmp_path / "backwards", resume=False)
    first, second = (load_server(latest(tmp_path / name / "checkpoints")[1]) for name in ("forwards", "backwards"))
    assert first.form == second.form
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert [line["metrics"] for line in lines(tmp_path / "forwards")] == [
        line["metrics"] for line in lines(tmp_path / "backwards")
    ]


THREE = {
    "names": [
        {"name": "mlp", "hidden": [16]},
        {"name": "cnn", "channels": [4], "hidden": 16},
        {"name": "mlp", "hidden": [24, 16]},
    ]
}


METHODS: dict[str, dict[str, Any]] = {
    "comet": {"subset_size": 40},
    "dsfl": {"subset_size": 40},
    "fd": {},
    "feddf": {"steps": 40},
    "feddistill": {"means_over": "after"},
    "feddistill_fl": {},
    "fedmd": {"subset_size": 40, "public_epochs": 0, "private_epochs": 2},
    "fedntd": {},
    "fedproto": {},
    "fml": {},
    "knfu": {"subset_size": 40},
    "ktpfl": {"subset_size": 40},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_exchanges_knowledge_learns_and_goes_on_after_an_interruption(
    tiny: Make, tmp_path: Path, method: str
) -> None:
    changes = {
        "strategy": {"name": method, **METHODS[method]},
        "data.public": {"size": 60}, "data.partition.size": 48, "cohort": 4, "rounds": 6,
        "train": {"epochs": 4, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.005}},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    if method not in ("feddistill_fl", "fedntd"):
        changes["model"] = THREE
    summary = run(tiny(changes), tmp_path / "whole")
    assert summary["failures"] == 0
    whole = lines(tmp_path / "whole")
    goal = "global/accuracy" if method in ("feddf", "fedntd", "feddistill_fl") else "personal/accuracy"
    assert whole[-1]["metrics"][goal] > whole[0]["metrics"][goal] + 0.2
    halves_are_the_whole(tiny(changes), tmp_path / "whole", tmp_path / "halves")


@pytest.mark.slow
@pytest.mark.parametrize("case", SELF_SUPERVISED)
def test_features_get_better_and_an_interrupted_run_ends_like_a_whole_one(
    tiny: Make, tmp_path: Path, case: str
) -> None:
    config = tiny({
        **SSL, "strategy": SELF_SUPERVISED[case], "cohort": 4, "rounds": 6, "checkpoint": {"every": 1},
        "data.partition.size": 60,
    })  # fmt: skip
    summary = run(config, tmp_path / "whole")
    assert summary["failures"] == 0
    first, last = (lines(tmp_path / "whole")[n] for n in (0, 6))
    if "moco" not in case and "protocl" not in case:  # whose queue fills with harder keys
        assert last["log"]["train_loss"] < lines(tmp_path / "whole")[1]["log"]["train_loss"]
    assert last["metrics"]["knn/accuracy"] > 0.6
    assert last["metrics"]["probe/accuracy"] > first["metrics"]["probe/accuracy"]
    assert set(last["metrics"]) == {
        "probe/accuracy", "knn/accuracy", "drift/feature_angle", "drift/projection_angle",
    }  # fmt: skip
    assert 0 < last["metrics"]["drift/projection_angle"] < 90
    assert set(last["bytes"]["up"]) == {"weights", "numbers"}
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")


ON_VIRTUAL_IMAGES = {
    "fedlgd": {"cohort": 4, "strategy": {**LGD, "show_local": True}},
    "fedavg_virtual over vhl": {
        "strategy": {
            **QUICK,
            "name": "fedavg_virtual",
            "base": {"name": "vhl", "noise_per_class": 2, "generator_width": 8},
        },
        "cohort": 4,
    },
    "fedavg_virtual over scaffold": {"strategy": {**QUICK, "name": "fedavg_virtual", "base": {"name": "scaffold"}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", ON_VIRTUAL_IMAGES.values(), ids=ON_VIRTUAL_IMAGES.keys())
def test_interrupted_is_the_whole(tiny: Make, tmp_path: Path, changes: dict) -> None:
    config = tiny({"model": NET, "rounds": 6, **changes})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")
    assert all(line["failures"] == [] for line in lines(tmp_path / "whole"))

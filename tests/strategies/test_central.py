"""Central training: all images, the steps of all nodes, nothing sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Make, lines

from fedkd.runs.run import run


def test_central_trains_on_all_images_and_sends_nothing(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "central"}, "rounds": 12})
    summary = run(config, tmp_path / "run")
    assert summary["bytes"] == {"up": {}, "down": {}}
    assert summary["final"]["global/accuracy"] > 0.8
    one_client = tiny({"data.partition": {"scheme": "iid", "clients": 1}, "rounds": 1})
    for name in ("central", "fedavg"):  # with one client the two are one method, but for the order of the batches
        run(one_client.model_copy(update={"strategy": tiny({"strategy": {"name": name}}).strategy}), tmp_path / name)
    a, b = (lines(tmp_path / name)[-1]["metrics"]["global/accuracy"] for name in ("central", "fedavg"))
    assert a == pytest.approx(b, abs=0.06)


def test_central_takes_the_steps_of_all_nodes(tiny: Make, tmp_path: Path) -> None:
    epoch = tiny({"strategy": {"name": "central"}, "train.batch_size": 12})  # 6 nodes of 24 images: 12 batches
    run(epoch, tmp_path / "epoch")
    run(epoch.model_copy(update={"train": epoch.train.model_copy(update={"steps": 2})}), tmp_path / "steps")
    found, expected = ([line["metrics"] for line in lines(tmp_path / name)] for name in ("steps", "epoch"))
    assert found == expected

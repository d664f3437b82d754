"""FedAvg and others on virtual images alone."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import Make
from helpers.virtual_images import LGD, NET, QUICK, server, virtual_of
from torch.nn import functional as F

from fedkd import Environment
from fedkd.runs.run import run
from fedkd.streams import torch_stream


def test_a_base_trains_on_the_kept_images_alone(tiny: Make, tmp_path: Path) -> None:
    strategy = {**QUICK, "name": "fedavg_virtual", "initial": "real", "initial_steps": 0}
    config = tiny({"strategy": strategy, "rounds": 1, "train.optimizer.lr": 0.05})
    run(config, tmp_path / "run")
    environment = Environment(config)
    start, model = environment.initial_weights(), environment.model(0)
    total, images = {n: torch.zeros_like(t) for n, t in start.items()}, 0
    for node, kept in virtual_of(tmp_path / "run").items():
        real = environment.preprocess(environment.data.train_of(node).inputs).flatten(1)
        assert all(bool((real - image.flatten()).abs().sum(1).min() == 0) for image in kept["images"])
        model.load_state_dict(start)
        order = torch_stream(0, 1, node, "fit/local-training")
        for batch in torch.randperm(len(kept["labels"]), generator=order).split(config.train.batch_size):
            loss = F.cross_entropy(model(kept["images"][batch]), kept["labels"][batch])
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p.data -= 0.05 * g
        for n, t in model.state_dict().items():
            total[n] += len(kept["labels"]) * t
        images += len(kept["labels"])
    for name, tensor in server(tmp_path / "run")["base"]["weights"].items():
        torch.testing.assert_close(tensor, total[name] / images, atol=1e-5, rtol=1e-4)


def test_the_baselines_start_from_the_images_of_fedlgd(tiny: Make, tmp_path: Path) -> None:
    run(tiny({"model": NET, "rounds": 1, "strategy": LGD}), tmp_path / "lgd")
    run(tiny({"model": NET, "rounds": 1, "strategy": {**QUICK, "name": "fedavg_virtual"}}), tmp_path / "avg")
    for node, kept in virtual_of(tmp_path / "avg").items():
        assert torch.equal(kept["images"], virtual_of(tmp_path / "lgd")[node]["images"])

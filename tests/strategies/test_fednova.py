"""FedNova: whole rounds by the paper's formulas, and its normaliser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Make, server_state
from helpers.hand import Hand, setting

from fedkd.runs.run import run
from fedkd.strategies.fednova import normaliser

CONVNET = {"name": "convnet", "channels": [8], "norm": "batch", "pooling": "max"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_three_rounds_of_fednova_are_the_papers_formulas(tiny: Make, tmp_path: Path, momentum: float) -> None:
    config = setting(tiny, {"name": "fednova"})
    optimizer = config.train.optimizer.model_copy(update={"lr": 0.05, "momentum": momentum})
    config = config.model_copy(update={"train": config.train.model_copy(update={"optimizer": optimizer})})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w = hand.start()
    for number in (1, 2, 3):
        cohort = hand.cohort(number, tmp_path / "run")
        sizes = [len(hand.data.train_of(k).labels) for k in cohort]
        total, tau, step = sum(sizes), 0.0, {n: 0.0 for n in w}
        rate = config.train.optimizer.lr * config.train.lr_decay ** (number - 1)
        for k, size in zip(cohort, sizes, strict=True):
            velocity = {n: np.zeros_like(v) for n, v in w.items()}
            gradients: list[dict[str, np.ndarray]] = [{}]

            def move(n: str, g: np.ndarray, v: np.ndarray, velocity: Any = velocity, gradients: Any = gradients) -> Any:
                if n in gradients[-1]:
                    gradients.append({})
                gradients[-1][n] = g
                velocity[n] = momentum * velocity[n] + g
                return velocity[n]

            _, steps = hand.train(number, k, w, move)
            a = [sum(momentum**i for i in range(steps - j)) for j in range(steps)]  # a gradient's weight in the sum
            assert normaliser(steps, momentum) == pytest.approx(sum(a))
            direction = {n: sum(x * g[n] for x, g in zip(a, gradients, strict=True)) / sum(a) for n in w}
            step = {n: step[n] + size / total * direction[n] for n in w}
            tau += size / total * sum(a)
        w = {n: w[n] - tau * rate * step[n] for n in w}
    found = server_state(tmp_path / "run")["weights"]
    for name, value in w.items():
        np.testing.assert_allclose(found[name].numpy(), value, atol=3e-5)


def test_fednova_with_equal_clients_is_fedavg(tiny: Make, tmp_path: Path) -> None:
    for name in ("fednova", "fedavg"):
        run(tiny({"strategy": {"name": name}, "cohort": 3, "model": CONVNET}), tmp_path / name)
    nova, average = (server_state(tmp_path / name)["weights"] for name in ("fednova", "fedavg"))
    for name, tensor in average.items():
        torch.testing.assert_close(nova[name], tensor, atol=1e-5, rtol=1e-5)


def test_one_step_counts_as_one_whatever_the_rounding() -> None:
    """A node that reported less was refused as impossible, with momentum 0.99 and others."""
    for momentum in (n / 1000 for n in range(1000)):
        assert 1 <= normaliser(1, momentum) <= 1 + 1e-9

"""FedAvg's global model, and FedProx's, by the papers' formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make, server_state
from torch.nn import functional as F

from fedkd import Environment
from fedkd.config import Config
from fedkd.learning.batches import batches
from fedkd.runs.run import run
from fedkd.streams import torch_stream


def final(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = server_state(folder)["weights"]
    return weights


def by_hand(config: Config, mu: float, weight: Callable[[int], float]) -> dict[str, np.ndarray]:
    """Return FedAvg's or FedProx's global model by the papers' formulas, in float64: no optimiser, no merge."""
    environment = Environment(config)
    model = environment.model(0).double()
    center = {name: tensor.double().numpy() for name, tensor in environment.initial_weights().items()}
    for number in range(1, config.rounds + 1):
        total, mass = {name: np.zeros_like(value) for name, value in center.items()}, 0.0
        for node in range(environment.data.clients):
            weights = {name: value.copy() for name, value in center.items()}
            data = environment.data.train_of(node)
            order = torch_stream(config.seed, number, node, "fit/local-training")
            for _ in range(config.train.epochs):
                labels = torch.from_numpy(data.labels)
                for x, y in batches(data, labels, config.train.batch_size, environment.preprocess, order):
                    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
                    model.zero_grad()
                    F.nll_loss(F.log_softmax(model(x.double()), 1), y).backward()
                    for name, parameter in model.named_parameters():
                        assert parameter.grad is not None
                        pull = mu * (weights[name] - center[name])
                        weights[name] -= config.train.optimizer.lr * (parameter.grad.numpy() + pull)
            for name in total:
                total[name] += weight(len(data.labels)) * weights[name]
            mass += weight(len(data.labels))
        center = {name: value / mass for name, value in total.items()}
    return center


WEIGHTS: dict[str, Callable[[int], float]] = {
    "examples": lambda images: images,
    "uniform": lambda images: 1,
    "batches": lambda images: images // 32 + (images % 32 > 1),  # one image that is left joins the batch before
}


@pytest.mark.parametrize(
    ("strategy", "mu", "weighting"),
    [
        ("fedavg", 0.0, "examples"),
        ("fedavg", 0.0, "uniform"),
        ("fedprox", 2.0, "examples"),
        ("fedprox", 2.0, "batches"),
    ],
)
def test_the_global_model_is_the_papers_formula(
    tiny: Make, tmp_path: Path, strategy: str, mu: float, weighting: str
) -> None:
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}  # unequal sizes: weights matter
    options = {"name": strategy, "weighting": weighting, **({"mu": mu} if mu else {})}
    changes = {"strategy": options, "data.partition": partition}
    config = tiny({**changes, "train.epochs": 2, "train.batch_size": 32})
    run(config, tmp_path / "run")
    right = by_hand(config, mu, WEIGHTS[weighting])
    for name, tensor in final(tmp_path / "run").items():
        np.testing.assert_allclose(tensor.numpy(), right[name], atol=2e-5)

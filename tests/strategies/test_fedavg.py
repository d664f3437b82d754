"""FedAvg's global model, and FedProx's, by the papers' formula."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import Make, lines, server_state
from torch.nn import functional as F

from fedkd import Environment, GlobalModelClient, InputError, Payload, RunError, weighted_mean
from fedkd.config import Config
from fedkd.core.sampling import sample_epochs
from fedkd.core.setup import make_setup
from fedkd.learning.batches import batches
from fedkd.runs.run import run
from fedkd.strategies.fedavg import FedAvg, mean_of_whole
from fedkd.streams import torch_stream


def final(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = server_state(folder)["weights"]
    return weights


def by_hand(
    config: Config, mu: float, weight: Callable[[int], float], drop: bool = False
) -> tuple[dict[str, np.ndarray], list[int]]:
    """Return FedAvg's or FedProx's global model by the papers' formulas, in float64: no optimiser, no merge.

    And how many nodes were left out in each round, because they did fewer epochs.
    """
    dropped = []
    environment = Environment(config)
    model = environment.model(0).double()
    center = {name: tensor.double().numpy() for name, tensor in environment.initial_weights().items()}
    for number in range(1, config.rounds + 1):
        total, mass = {name: np.zeros_like(value) for name, value in center.items()}, 0.0
        dropped.append(0)
        for node in range(environment.data.clients):
            epochs = sample_epochs(config, number, node)
            if drop and epochs < config.train.epochs:
                dropped[-1] += 1
                continue
            weights = {name: value.copy() for name, value in center.items()}
            data = environment.data.train_of(node)
            order = torch_stream(config.seed, number, node, "fit/local-training")
            for _ in range(epochs):
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
        center = {name: value / mass for name, value in total.items()} if mass else center
    return center, dropped


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
    right, _ = by_hand(config, mu, WEIGHTS[weighting])
    for name, tensor in final(tmp_path / "run").items():
        np.testing.assert_allclose(tensor.numpy(), right[name], atol=2e-5)


@pytest.mark.parametrize(
    ("strategy", "mu", "weighting", "partial", "share"),
    [
        ("fedprox", 2.0, "batches", "keep", 0.5),
        ("fedprox", 2.0, "batches", "drop", 0.5),
        ("fedavg", 0.0, "examples", "drop", 0.9),
    ],
)
def test_stragglers_are_kept_or_dropped(
    tiny: Make, tmp_path: Path, strategy: str, mu: float, weighting: str, partial: str, share: float
) -> None:
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}
    options = {"name": strategy, "weighting": weighting, "partial": partial, **({"mu": mu} if mu else {})}
    changes = {"strategy": options, "data.partition": partition, "faults": {"partial_work": share}, "rounds": 3}
    config = tiny({**changes, "train.epochs": 3, "train.batch_size": 32})
    run(config, tmp_path / "run")
    right, dropped = by_hand(config, mu, WEIGHTS[weighting], partial == "drop")
    assert partial == "keep" or max(dropped) == (6 if share == 0.9 else 4)  # in a round all of them
    for name, tensor in final(tmp_path / "run").items():
        np.testing.assert_allclose(tensor.numpy(), right[name], atol=2e-5)
    logged = ["train_loss" in line["log"] for line in lines(tmp_path / "run")[1:]]
    assert logged == [count < 6 for count in dropped]


def test_the_order_of_whole_replies_and_others_does_not_matter() -> None:
    def reply(value: float, examples: int, steps: int) -> Payload:
        numbers = {"examples": examples, "loss": value, "steps": steps}
        return Payload(weights={"w": torch.tensor([value])}, numbers=numbers)

    replies = [(1.0, 40, 4), (3.0, 20, 2), (100.0, 40, 3), (200.0, 10, 0)]
    for order in permutations(replies):
        merged = reply(*order[0])
        for one in order[1:]:
            merged = mean_of_whole(merged, reply(*one), weighted_mean, lambda images: images // 10)
        assert merged.weights["w"].item() == pytest.approx(5 / 3)
        assert merged.numbers == {"examples": 60, "loss": pytest.approx(5 / 3)}


def test_a_reply_without_its_number_of_steps_is_refused(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "fedavg", "partial": "drop"}})
    without = mock.patch.object(FedAvg, "client", GlobalModelClient)
    refused = pytest.raises(RunError, match="numbers without 'steps'")
    with without, mock.patch.object(FedAvg, "check"), refused:
        run(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["fedensemble", "simclr", "vhl"])
def test_a_method_that_keeps_all_models_cannot_drop_some(tiny: Make, name: str) -> None:
    with pytest.raises(InputError, match=r"strategy.partial = 'drop': \w+ keeps all models"):
        make_setup(tiny({"strategy": {"name": name, "partial": "drop"}})).check()

"""FedAvg, FedProx, Central and Local against formulas of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lines, server_state
from torch.nn import functional as F

from fedkd import Environment
from fedkd.config import Config
from fedkd.learning.batches import batches
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run
from fedkd.streams import torch_stream

Make = Callable[..., Config]


def final(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = server_state(folder)["weights"]
    return weights


def by_hand(config: Config, mu: float) -> dict[str, np.ndarray]:
    """Return FedAvg's or FedProx's global model by the papers' formulas, in float64: no optimiser, no merge."""
    environment = Environment(config)
    model = environment.model(0).double()
    center = {name: tensor.double().numpy() for name, tensor in environment.initial_weights().items()}
    for number in range(1, config.rounds + 1):
        total, images = {name: np.zeros_like(value) for name, value in center.items()}, 0
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
                total[name] += len(data.labels) * weights[name]
            images += len(data.labels)
        center = {name: value / images for name, value in total.items()}
    return center


@pytest.mark.parametrize(("strategy", "mu"), [("fedavg", 0.0), ("fedprox", 2.0)])
def test_the_global_model_is_the_papers_formula(tiny: Make, tmp_path: Path, strategy: str, mu: float) -> None:
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.5, "minimum": 10}  # unequal sizes: weights matter
    changes = {"strategy": {"name": strategy, **({"mu": mu} if mu else {})}, "data.partition": partition}
    config = tiny({**changes, "train.epochs": 2, "train.batch_size": 32})
    run(config, tmp_path / "run")
    right = by_hand(config, mu)
    for name, tensor in final(tmp_path / "run").items():
        np.testing.assert_allclose(tensor.numpy(), right[name], atol=2e-5)


def test_fedprox_without_its_term_is_fedavg_and_a_strong_one_stays_near(tiny: Make, tmp_path: Path) -> None:
    for name, strategy in [
        ("avg", {"name": "fedavg"}),
        ("none", {"name": "fedprox", "mu": 0.0}),
        ("strong", {"name": "fedprox", "mu": 9.0}),
    ]:
        run(tiny({"strategy": strategy}), tmp_path / name)
    start = Environment(tiny()).initial_weights()

    def moved(name: str) -> float:
        return sum(float(((t - start[key]) ** 2).sum()) for key, t in final(tmp_path / name).items())

    assert all(
        torch.equal(a, b)
        for a, b in zip(final(tmp_path / "avg").values(), final(tmp_path / "none").values(), strict=True)
    )
    assert moved("strong") < moved("avg") / 2


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


def test_local_models_stay_with_their_nodes_and_only_the_cohort_learns(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"strategy": {"name": "local"}, "rounds": 1, "cohort": 2, "model": {"names": ["mlp", "cnn"]}})
    summary = run(config, tmp_path / "run")
    assert summary["bytes"]["down"] == {}
    assert set(summary["bytes"]["up"]) == {"numbers"}
    cohort = lines(tmp_path / "run")[1]["cohort"]
    states = dict(load_nodes(latest(tmp_path / "run" / "checkpoints")[1]))
    assert sorted(states) == cohort
    environment = Environment(config)
    for node, state in states.items():
        kept = tensors_of(state["model"])  # type: ignore[arg-type]
        initial = environment.initial_weights(environment.architecture_of(node), node)
        assert kept.keys() == initial.keys()
        assert not torch.equal(kept["classifier.weight"], initial["classifier.weight"])
    before, after = (line["nodes"]["personal/accuracy"] for line in lines(tmp_path / "run"))
    assert all((before[str(n)] == after[str(n)]) or n in cohort for n in range(6))
    assert all(after[str(n)] > before[str(n)] for n in cohort)
    assert "global/accuracy" not in summary["final"]


def test_nodes_start_from_models_of_their_own(tiny: Make) -> None:
    environment = Environment(tiny())
    a, b = environment.initial_weights(0, 1), environment.initial_weights(0, 2)
    assert not torch.equal(a["classifier.weight"], b["classifier.weight"])
    assert torch.equal(a["classifier.weight"], environment.initial_weights(0, 1)["classifier.weight"])

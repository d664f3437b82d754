"""Models of which nodes share a part: what a layer is, what is sent and kept, how a node is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Make, lines, server_state
from helpers.hand import UNEQUAL, Hand, close, setting
from torch import nn

from fedkd import Environment, InputError, layers_of, write_model
from fedkd.core.setup import make_setup
from fedkd.data.spec import Form
from fedkd.exports.of_run import model_of_run
from fedkd.messages.arrays import tensors_of
from fedkd.methods.shared_parts import parted
from fedkd.models.build import build, fill
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run
from fedkd.strategies.fedper import FedPer
from fedkd.strategies.lg_fedavg import LGFedAvg


def model_of(name: str, side: int, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        return build(name, options, Form("image", (1, side, side)), 10)


@pytest.mark.parametrize(("name", "layers"), [("lenet5", 5), ("resnet8", 8), ("resnet20", 20), ("mlp", 3)])
def test_layers_are_counted_as_the_names_of_models_do(name: str, layers: int) -> None:
    model = model_of(name, 32)
    found = layers_of(model)
    assert len(found) == layers
    assert [tensor for layer in found for tensor in layer] == list(model.state_dict())


def test_a_norm_belongs_to_the_layer_before_it_and_one_before_all_layers_is_its_own() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 2))
    parts = [{name.split(".")[0] for name in layer} for layer in layers_of(model)]
    assert parts == [{"0"}, {"1", "2", "3"}, {"4"}]
    assert "2.num_batches_tracked" in layers_of(model)[1]


def test_fedper_shares_the_convolutions_of_fedprotos_baseline() -> None:
    """FedProto's code (Tan et al., 2022) shares all but its linear layers `fc1` and `fc2`."""
    model = model_of("cnn", 28, channels=[10, 20], hidden=50)
    shared, kept = parted(model.state_dict(), FedPer(kept_layers=2).shared_names(model))
    assert [tuple(tensor.shape) for tensor in shared.values()] == [(10, 1, 5, 5), (10,), (20, 10, 5, 5), (20,)]
    assert [tensor.shape[0] for tensor in kept.values()] == [50, 50, 10, 10]


def test_lg_fedavg_shares_the_weights_of_the_published_table() -> None:
    """The MNIST model of the authors' code: 99,978 of 633,226 weights are shared."""
    model = model_of("mlp", 28, hidden=[512, 256, 256, 128])
    shared, kept = parted(model.state_dict(), LGFedAvg(shared_layers=3).shared_names(model))
    assert sum(tensor.numel() for tensor in shared.values()) == 99_978
    assert sum(tensor.numel() for tensor in kept.values()) == 633_226 - 99_978


ONE_STEP = """
import torch
from torch import nn
from fedkd import Classifier

def sines(shape, f, p, a):
    return (a * torch.sin(f * torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + p)).reshape(shape).float()

def build(shape, classes):
    model = Classifier(nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh()), 4, 3)
    with torch.no_grad():
        model.features[0].weight.copy_(sines((4, 3), 0.29, 0.4, 0.8))
        model.classifier.weight.copy_(sines((3, 4), 0.31, 0.2, 0.8))
        model.classifier.bias.copy_(sines((3,), 0.7, 0.1, 0.5))
    return model
"""


@pytest.mark.parametrize(
    ("strategy", "shared", "kept", "values"),
    [
        ("fedper", "features.0.weight", "classifier.weight", (1.88990885, 1.82679933)),
        ("lg_fedavg", "classifier.weight", "features.0.weight", (1.83116543, 1.88646158)),
    ],
)
def test_one_step_has_the_values_of_the_specification(
    tiny: Make, tmp_path: Path, strategy: str, shared: str, kept: str, values: tuple[float, float]
) -> None:
    """z = W tanh(A x) + b with sines as weights and samples; the norms of the shared weights and of node 0's own."""
    (tmp_path / "net.py").write_text(ONE_STEP)
    x = np.concatenate([np.sin((0.37 + 0.1 * k) * np.arange(18) + k).reshape(6, 3) for k in (0, 1)])
    y, nodes = np.array([0, 1, 2, 0, 0, 1] * 2), np.repeat([0, 1], 6)
    np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_test=x, y_test=y, node_train=nodes, node_test=nodes)
    data = {"file": str(tmp_path / "set.npz"), "kind": "table", "scaling": "none", "partition": {"scheme": "natural"}}
    config = tiny({
        "data": data, "model": {"name": f"{tmp_path / 'net.py'}:build"}, "strategy": {"name": strategy}, "rounds": 1,
    })  # fmt: skip
    run(config, tmp_path / "run")
    states = dict(load_nodes(latest(tmp_path / "run" / "checkpoints")[1]))
    found = server_state(tmp_path / "run")["shared"][shared], tensors_of(states[0].array_records["model"])[kept]
    assert [tensor.norm().item() for tensor in found] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fedper"},
        {"name": "fedper", "weighting": "uniform"},
        {"name": "lg_fedavg"},
        {"name": "lg_fedavg", "shared_layers": 2, "weighting": "uniform"},
    ],
)
def test_three_rounds_are_the_papers_formulas(tiny: Make, tmp_path: Path, strategy: dict[str, Any]) -> None:
    config = setting(tiny, strategy, **({"model.hidden": [16, 8]} if "shared_layers" in strategy else {}))
    run(config, tmp_path / "run")
    hand, names = Hand(config), list(server_state(tmp_path / "run")["shared"])
    assert [name.split(".")[0] for name in names[-1:]] == (
        ["features"] if "fedper" in strategy.values() else ["classifier"]
    )
    own = [
        {name: value.double().numpy() for name, value in hand.environment.initial_weights(0, node).items()}
        for node in range(6)
    ]
    shared = {name: value for name, value in hand.start().items() if name in names}
    for number in (1, 2, 3):
        total, mass = {name: 0.0 for name in names}, 0
        for node in hand.cohort(number, tmp_path / "run"):
            own[node], _ = hand.train(number, node, own[node] | shared, lambda name, g, weights: g)
            weight = 1 if strategy.get("weighting") else len(hand.data.train_of(node).labels)
            total = {name: total[name] + weight * own[node][name] for name in names}
            mass += weight
        shared = {name: value / mass for name, value in total.items()}
    close(tmp_path / "run", shared, "shared")
    for node, state in load_nodes(latest(tmp_path / "run" / "checkpoints")[1]):
        kept = tensors_of(state.array_records["model"])
        assert kept.keys() == own[node].keys() - set(names)
        for name, tensor in kept.items():
            np.testing.assert_allclose(tensor.numpy(), own[node][name], atol=3e-5)


@pytest.mark.parametrize("strategy", ["fedper", "lg_fedavg"])
def test_all_nodes_are_measured_with_the_newest_shared_part_and_their_own_rest(
    tiny: Make, tmp_path: Path, strategy: str
) -> None:
    """After one round of two nodes, four have never taken part. The models are those that `fedkd export` takes."""
    config = tiny({"strategy": {"name": strategy}, "data.partition": UNEQUAL, "rounds": 1, "cohort": 2})
    run(config, tmp_path / "run")
    last = lines(tmp_path / "run")[-1]
    shared = server_state(tmp_path / "run")["shared"]
    assert len(last["cohort"]) == 2
    environment = Environment(config)
    for node in range(6):
        model = environment.model(0)
        if node not in last["cohort"]:
            fill(model, environment.initial_weights(0, node) | shared)
            score = environment.score(0, model.state_dict(), environment.data.test_of(node))
            assert last["nodes"]["personal/accuracy"][str(node)] == score["accuracy"]
        exported = model_of_run(tmp_path / "run", node).module.state_dict()
        assert all(torch.equal(exported[name], tensor) for name, tensor in shared.items())
        score = environment.score(0, exported, environment.data.test_of(node))
        assert last["nodes"]["personal/accuracy"][str(node)] == score["accuracy"]
    assert "personal_global_test/accuracy" in last["metrics"]
    assert not any(name.startswith("global/") for name in last["metrics"])


def test_only_the_shared_part_travels(tiny: Make, tmp_path: Path) -> None:
    for strategy in ("fedavg", "fedper", "lg_fedavg"):
        run(tiny({"strategy": {"name": strategy}, "rounds": 1}), tmp_path / strategy)
    sent = {name: lines(tmp_path / name)[1]["bytes"] for name in ("fedavg", "fedper", "lg_fedavg")}
    for way in ("up", "down"):
        assert sent["fedper"][way]["weights"] + sent["lg_fedavg"][way]["weights"] == sent["fedavg"][way]["weights"]
    assert sent["fedper"]["down"]["weights"] > 6 * 4 * 64 * 16 > sent["lg_fedavg"]["down"]["weights"] > 6 * 4 * 10 * 16


@pytest.mark.parametrize(
    ("strategy", "model", "message"),
    [
        (
            {"name": "fedper", "kept_layers": 2},
            {"hidden": [16]},
            "keep all 2 layers of the model 'mlp' .features.1, class",
        ),
        ({"name": "lg_fedavg", "shared_layers": 3}, {"hidden": [16]}, "share all 2 layers of the model 'mlp'"),
        ({"name": "lg_fedavg"}, {"hidden": []}, "share all 1 layers"),
        ({"name": "fedper", "kept_layers": 0}, {"hidden": [16]}, "strategy.kept_layers = 0"),
    ],
)
def test_a_part_must_be_shared_and_a_part_kept(
    tiny: Make, strategy: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_setup(tiny({"strategy": strategy, "model": {"name": "mlp", **model}})).check()


def test_the_kept_layers_of_lg_fedavg_may_differ_and_the_shared_ones_may_not(tiny: Make, tmp_path: Path) -> None:
    models = [{"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [24, 16]}]
    config = tiny({"strategy": {"name": "lg_fedavg"}, "model": {"names": models}, "rounds": 4, "train.epochs": 3})
    assert run(config, tmp_path / "run")["failures"] == 0
    first, *_, last = (line["metrics"] for line in lines(tmp_path / "run"))
    assert last["personal/accuracy"] > first["personal/accuracy"] + 0.4
    models[1]["hidden"] = [16, 24]
    with pytest.raises(InputError, match=r"model.names: the shared weights .* 'mlp' are .*\(10, 24\).*\(10, 16\)"):
        make_setup(tiny({"strategy": {"name": "lg_fedavg"}, "model": {"names": models}})).check()


@pytest.mark.parametrize("strategy", [{"name": "fedper", "kept_layers": 2}, {"name": "lg_fedavg", "shared_layers": 2}])
def test_personal_models_learn_with_batch_norm(tiny: Make, tmp_path: Path, strategy: dict[str, Any]) -> None:
    """Counters and statistics are shared or kept with the convolution before them."""
    model = {"name": "convnet", "channels": [8, 8, 8], "norm": "batch"}
    train = {"epochs": 4, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}}
    config = tiny({"strategy": strategy, "model": model, "train": train, "rounds": 4})
    assert run(config, tmp_path / "run")["failures"] == 0
    first, *_, last = (line["metrics"] for line in lines(tmp_path / "run"))
    assert last["personal/accuracy"] > first["personal/accuracy"] + 0.4
    counters = [name for name in server_state(tmp_path / "run")["shared"] if name.endswith("num_batches_tracked")]
    assert len(counters) == (2 if strategy["name"] == "fedper" else 1)


def test_all_nodes_may_start_from_the_model_of_a_run_of_fedavg(tiny: Make, tmp_path: Path) -> None:
    """As in the code of LG-FedAvg: `fedkd export`, and `model.weights`."""
    run(tiny({"strategy": {"name": "fedavg"}, "model.hidden": [16, 8]}), tmp_path / "start")
    write_model(model_of_run(tmp_path / "start"), tmp_path / "start.safetensors")
    changes = {"model": {"name": "mlp", "hidden": [16, 8], "weights": str(tmp_path / "start.safetensors")}}
    run(tiny({"strategy": {"name": "lg_fedavg", "shared_layers": 2}, **changes}), tmp_path / "run")
    before, after = lines(tmp_path / "start")[-1]["nodes"], lines(tmp_path / "run")[0]["nodes"]
    assert after["personal/accuracy"] == before["personal/accuracy"]

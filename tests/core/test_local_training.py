"""Local training over rounds: epochs that go on, learning rates and statistics of a node's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, checkpoint_bytes, halves_are_the_whole, lines, server_state
from torch.nn import functional as F

from fedkd import Environment, GlobalModelClient, InputError, Payload, RunError
from fedkd.core.client import STATISTICS
from fedkd.core.round_loop import _mean
from fedkd.core.setup import make_setup
from fedkd.learning.evaluation import predict
from fedkd.learning.training import Outputs, probability_loss
from fedkd.messages.arrays import tensors_of
from fedkd.models.build import fill, fresh_statistics
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run
from fedkd.strategies.fedavg import FedAvg

NORM = {"model": {"name": "convnet", "channels": [4], "norm": "batch"}, "data.train_per_class": 30, "cohort": 3}


SITES = {"sites": {"count": 2, "classes": ["a", "b"], "shape": [1, 8, 8]}}


def client_at(environment: Environment, state: RecordDict, number: int, action: str = "fit") -> GlobalModelClient:
    return GlobalModelClient(environment, [FedAvg()], 0, state, number, action, False)


def test_an_epoch_goes_on_where_the_nodes_last_round_has_stopped(tiny: Make) -> None:
    train = {"steps": 2, "drop_last": True, "continue_epoch": True}
    environment = Environment(tiny({f"train.{key}": value for key, value in train.items()}))  # 24 images, batches of 8
    state, seen = RecordDict(), []
    for number in (1, 2, 5):
        client = client_at(environment, state, number)
        client.fit(Payload(weights=environment.initial_weights()))
        assert client.positions is not None
        assert len(client.positions) == 16
        seen += client.positions.tolist()
    assert sorted(seen[:24]) == sorted(seen[24:]) == list(range(24))
    assert seen[:24] != seen[24:]


def test_what_a_batch_leaves_over_is_left_out(tiny: Make) -> None:
    train = {"steps": 2, "drop_last": True, "continue_epoch": True, "batch_size": 10}
    environment = Environment(tiny({f"train.{key}": value for key, value in train.items()}))
    state = RecordDict()
    for number in (1, 2, 3):
        client = client_at(environment, state, number)
        client.fit(Payload(weights=environment.initial_weights()))
        assert client.positions is not None
        assert len(set(client.positions.tolist())) == 20  # two whole batches of 24 images, then a new epoch
    one = tiny({"train.drop_last": True, "train.batch_size": 10}).train
    assert one.batches(24) == 2
    assert tiny({"train.batch_size": 10}).train.batches(24) == 3


@pytest.mark.parametrize("engine", ["inline", "vectorised"])
def test_a_run_of_continued_epochs_is_the_same_when_it_is_resumed(tiny: Make, tmp_path: Path, engine: str) -> None:
    train = {"steps": 2, "drop_last": True, "continue_epoch": True, "lr_decay": 0.5, "lr_decay_by": "participation"}
    changes = {f"train.{key}": value for key, value in train.items()} | {"rounds": 6, "cohort": 3, "engine": engine}
    whole = tiny(changes)
    run(whole, tmp_path / "whole")
    halves_are_the_whole(whole, tmp_path / "whole", tmp_path / "halves")


def test_the_vectorised_engine_takes_the_same_images(tiny: Make, tmp_path: Path) -> None:
    train = {"steps": 2, "drop_last": True, "continue_epoch": True}
    changes = {f"train.{key}": value for key, value in train.items()}
    for engine in ("inline", "vectorised"):
        run(tiny({**changes, "engine": engine}), tmp_path / engine)
    one, other = (server_state(tmp_path / engine)["weights"] for engine in ("inline", "vectorised"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


def test_the_rate_follows_the_nodes_last_participation(tiny: Make) -> None:
    config = tiny({"train.lr_decay": 0.5, "train.lr_decay_by": "participation"})
    environment, state, rates = Environment(config), RecordDict(), []
    for number in (3, 4, 9):
        for _ in range(2):  # a second request of the round trains at the same rate
            client = client_at(environment, state, number)
            rates.append(client.settings.optimizer.lr)
            client.fit(Payload(weights=environment.initial_weights()))
    assert rates == pytest.approx([0.1, 0.1, 0.1 * 0.5**2, 0.1 * 0.5**2, 0.1 * 0.5**3, 0.1 * 0.5**3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.continue_epoch": True, "train.drop_last": True}, "continue_epoch = true needs steps"),
        ({"train.continue_epoch": True, "train.steps": 3}, "drop_last = true"),
        ({"train.loss": "probability", "train.class_weights": "balanced"}, "class_weights are of the cross-entropy"),
        ({"data": SITES, "evaluate.mean_over": "samples"}, "mean_over = 'samples'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(tiny: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.drop_last": True, "train.batch_size": 25},
            "a node has 24 training images, fewer than one batch of 25",
        ),
        ({"train.batch_norm": "local", "strategy": "local"}, "nodes keep whole models"),
        ({"train.batch_norm": "local", "strategy": "scaffold"}, "train.batch_norm = 'local'"),
        ({"train.batch_norm": "reset", "strategy": "fedx"}, "fedx has a training loop of its own"),
        ({"train.lr_decay_by": "participation", "strategy": "fml"}, "fml has a training loop of its own"),
        ({"train.loss": "probability", "strategy": "fedntd"}, "has a loss of its own"),
    ],
)
def test_a_method_or_data_that_do_not_fit_are_refused_before_the_run(
    tiny: Make, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_setup(tiny(changes)).check()


# Statistics of batch norm


def statistics_of(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    found = load_nodes(latest(folder / "checkpoints")[1])
    return {node: tensors_of(state.array_records[STATISTICS]) for node, state in found if STATISTICS in state}


def test_local_statistics_never_leave_a_node_and_it_is_measured_with_them(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**NORM, "train.batch_norm": "local", "rounds": 3})
    run(config, tmp_path / "run")
    weights = server_state(tmp_path / "run")["weights"]
    environment = Environment(config)
    model = environment.model(0)
    assert weights.keys() == model.state_dict().keys() - fresh_statistics(model).keys()
    kept = statistics_of(tmp_path / "run")
    cohorts = {node for line in lines(tmp_path / "run")[1:] for node in line["cohort"]}
    assert kept.keys() == cohorts
    assert len({json.dumps(one["features.1.running_mean"].tolist()) for one in kept.values()}) == len(kept)
    measured = lines(tmp_path / "run")[-1]["nodes"]["personal/accuracy"]
    for node in range(6):
        fill(model, {**weights, **(kept.get(node) or fresh_statistics(model))})
        test = environment.data.test_of(node)
        right = (predict(model, test, environment.preprocess).argmax(1) == torch.from_numpy(test.labels)).double()
        assert measured[str(node)] == pytest.approx(float(right.mean()))


def test_local_statistics_are_those_of_the_nodes_own_batches(tiny: Make) -> None:
    """One step of training: running mean = 0.9 * 0 + 0.1 * the batch's mean, and in its next round from there."""
    config = tiny({**NORM, "train": {"steps": 1, "batch_norm": "local", "batch_size": 24}})
    environment, state = Environment(config), RecordDict()
    start = environment.initial_weights()
    means = []
    for number in (1, 2):
        client = client_at(environment, state, number)
        client.load_model(start)
        batch = environment.preprocess(client.data.inputs)
        first = next(m for m in client.model.features.modules() if isinstance(m, torch.nn.Conv2d))
        with torch.no_grad():
            means.append(first(batch).mean((0, 2, 3)))
        client.fit(Payload(weights=start))
    found = tensors_of(state.array_records[STATISTICS])
    name = next(name for name in found if name.endswith("running_mean"))
    torch.testing.assert_close(found[name], 0.9 * 0.1 * means[0] + 0.1 * means[1])
    assert int(found[name.replace("running_mean", "num_batches_tracked")]) == 2


def test_reset_statistics_are_averaged_but_each_training_starts_with_fresh_ones(tiny: Make, tmp_path: Path) -> None:
    counts = {}
    for kind in ("averaged", "reset"):
        run(tiny({**NORM, "train": {"steps": 2, "batch_norm": kind}, "rounds": 3}), tmp_path / kind)
        weights = server_state(tmp_path / kind)["weights"]
        counts[kind] = int(next(t for name, t in weights.items() if name.endswith("num_batches_tracked")))
    assert counts == {"averaged": 6, "reset": 2}


def test_local_statistics_are_the_same_with_the_vectorised_engine(tiny: Make, tmp_path: Path) -> None:
    for engine in ("inline", "vectorised"):
        run(tiny({**NORM, "train.batch_norm": "local", "engine": engine}), tmp_path / engine)
    one, other = (statistics_of(tmp_path / name) for name in ("inline", "vectorised"))
    assert one.keys() == other.keys()
    for node, tensors in one.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, other[node][name], rtol=1e-4, atol=1e-5)


def test_a_resumed_run_has_the_same_statistics(tiny: Make, tmp_path: Path) -> None:
    config = tiny({**NORM, "train.batch_norm": "local", "rounds": 6})
    run(config, tmp_path / "whole")
    halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")
    assert any("nodes" in name for name in checkpoint_bytes(tmp_path / "whole"))


# Losses and means


def test_the_loss_of_probabilities_is_the_mean_of_1_minus_p() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.5, 0.5]])
    outputs = Outputs(logits, logits.new_empty(0), lambda x: x)
    right = 1 - (math.exp(2) / (math.e + math.exp(2) + 1) + 1 / 3) / 2
    assert float(probability_loss(outputs, torch.tensor([1, 2]), {}, {})) == pytest.approx(right)


def test_a_run_minimises_1_minus_p(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"train": {"steps": 1, "batch_size": 24, "loss": "probability"}, "rounds": 1, "cohort": 1})
    run(config, tmp_path / "run")
    environment = Environment(config)
    node = lines(tmp_path / "run")[1]["cohort"][0]
    model, data = environment.model(0), environment.data.train_of(node)
    fill(model, environment.initial_weights())
    logits = model(environment.preprocess(data.inputs))
    value = 1 - F.softmax(logits, 1)[torch.arange(24), torch.from_numpy(data.labels)].mean()
    assert lines(tmp_path / "run")[1]["log"]["train_loss"] == pytest.approx(float(value.detach()), rel=1e-5)


def test_a_method_that_cannot_go_on_within_an_epoch_says_so(tiny: Make, tmp_path: Path) -> None:
    train = {"steps": 2, "drop_last": True, "continue_epoch": True}
    vhl = {"name": "vhl", "noise_per_class": 8, "noise_batch_size": 8}
    with pytest.raises(RunError, match="continue_epoch: this method's training cannot go on where it stopped"):
        run(tiny({f"train.{key}": value for key, value in train.items()} | {"strategy": vhl}), tmp_path / "run")


def test_a_mean_over_samples_is_of_the_nodes_models_only(tiny: Make) -> None:
    environment = Environment(tiny({"evaluate.mean_over": "samples"}))
    sizes = {0: 1, 1: 3}
    data = SimpleNamespace(test_parts=[range(size) for size in sizes.values()], validation_parts=None)
    stub = cast(Environment, SimpleNamespace(config=environment.config, data=data))
    assert _mean("personal/accuracy", {0: 0.0, 1: 1.0}, stub) == pytest.approx(0.75)
    assert _mean("personal_global_test/accuracy", {0: 0.0, 1: 1.0}, stub) == pytest.approx(0.5)
    assert _mean("own/gain", {0: 0.0, 1: 1.0}, stub) == pytest.approx(0.5)


@pytest.mark.parametrize("strategy", ["fedavg", "local", "fedproto"])
def test_without_the_global_test_set_only_the_nodes_own_samples_are_measured(
    tiny: Make, tmp_path: Path, strategy: str
) -> None:
    for name, measured in (("with", True), ("without", False)):
        run(tiny({"strategy": strategy, "evaluate.global_test": measured}), tmp_path / name)
    whole, less = (lines(tmp_path / name)[-1]["metrics"] for name in ("with", "without"))
    on_global = {name for name in whole if name.split("/")[0] in ("global", "personal_global_test")}
    assert on_global
    assert less == {name: value for name, value in whole.items() if name not in on_global}


def test_a_mean_over_samples_counts_each_node_by_its_test_samples(tiny: Make, tmp_path: Path) -> None:
    partition = {"scheme": "classes_per_client", "clients": 6, "classes": 3}
    changes = {"data.partition": partition, "data.train_per_class": 20, "data.node_test": 90}
    config = tiny({**changes, "evaluate.mean_over": "samples"})
    run(config, tmp_path / "samples")
    run(tiny(changes), tmp_path / "nodes")
    data = Environment(config).data
    sizes = [len(data.test_parts[node]) for node in range(6)]
    assert len(set(sizes)) > 1
    line, other = lines(tmp_path / "samples")[-1], lines(tmp_path / "nodes")[-1]
    values = [line["nodes"]["personal/accuracy"][str(node)] for node in range(6)]
    assert line["nodes"] == other["nodes"]
    assert line["metrics"]["personal/accuracy"] == pytest.approx(
        sum(s * v for s, v in zip(sizes, values, strict=True)) / sum(sizes)
    )
    assert other["metrics"]["personal/accuracy"] == pytest.approx(sum(values) / 6)

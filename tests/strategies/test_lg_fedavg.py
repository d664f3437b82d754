"""LG-FedAvg as its authors' code measures it: each node's best model so far, their mean, their ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, checkpoint_bytes, halves_are_the_whole, lines, server_state
from torch import Tensor

from fedkd import Environment, InputError, Payload
from fedkd.core.setup import make_setup
from fedkd.core.wrapper import make_strategy
from fedkd.exports.of_run import model_of_run
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import load_nodes
from fedkd.runs.run import run
from fedkd.strategies.lg_fedavg import LGFedAvgClient

BEST = {"name": "lg_fedavg", "weighting": "uniform", "measured": "best"}
WILD = {
    "strategy": BEST, "cohort": 3, "rounds": 6, "train.optimizer": {"name": "sgd", "lr": 2.0},
    "checkpoint": {"every": 1, "keep": 9},
}  # fmt: skip
Weights = dict[str, Tensor]


def trained_models(folder: Path, number: int, environment: Environment, kept_as: str) -> dict[int, Weights]:
    """Return the newest model of each node after a round: the layers that it has trained, and the shared ones."""
    home = folder / "checkpoints" / f"round-{number:06d}"
    states = dict(load_nodes(home))
    shared = server_state(home)["shared"]
    found = {}
    for node in range(6):
        kept = states.get(node, RecordDict()).array_records.get(kept_as)
        own = environment.initial_weights(0, node) if kept is None else tensors_of(kept)
        found[node] = {**own, **shared}
    return found


def test_the_best_models_are_measured_and_not_the_newest(tiny: Make, tmp_path: Path) -> None:
    """With steps that are too large a node's newest model is often worse than an earlier one."""
    config = tiny(WILD)
    run(config, tmp_path / "best")
    run(tiny({**WILD, "strategy": {**BEST, "measured": "newest"}}), tmp_path / "newest")
    environment, found = Environment(config), lines(tmp_path / "best")
    data = environment.data

    def accuracy(weights: Weights, node: int) -> float:
        return environment.score(0, weights, data.test_of(node))["accuracy"]

    best: dict[int, tuple[float, Weights]] = {}
    older, without_ensemble, highest = 0, 0, -1.0
    for number in range(7):
        models = trained_models(tmp_path / "best", number, environment, "trained")
        as_ever = trained_models(tmp_path / "newest", number, environment, "model")
        for node, model in models.items():
            assert all(torch.equal(tensor, as_ever[node][name]) for name, tensor in model.items())
            if node not in best or accuracy(model, node) >= best[node][0]:
                best[node] = accuracy(model, node), model
            older += best[node][1] is not model
        mean = {name: sum(model[name] for _, model in best.values()) / 6 for name in models[0]}
        shared = {name: mean[name] for name in server_state(tmp_path / "best")["shared"]}
        measured = {node: {**model, **shared} for node, (_, model) in best.items()}  # type: ignore[dict-item]
        metrics, of_nodes = found[number]["metrics"], found[number]["nodes"]["personal/accuracy"]
        for node, model in measured.items():
            assert of_nodes[str(node)] == pytest.approx(accuracy(model, node), abs=1.1 / 20)
        score = environment.score(0, mean, data.test)  # type: ignore[arg-type]
        assert metrics["global/loss"] == pytest.approx(score["loss"], rel=1e-3)
        if number and metrics["personal/accuracy"] > highest:
            highest = metrics["personal/accuracy"]
            outputs = sum(environment.logits(0, model, data.test).double() for model in measured.values())
            right = (outputs.argmax(1) == torch.from_numpy(data.test.labels)).double().mean()  # type: ignore[union-attr]
            assert metrics["ensemble/accuracy"] == pytest.approx(float(right), abs=2.1 / len(data.test.labels))
        else:
            assert "ensemble/accuracy" not in metrics
            without_ensemble += 1
    assert older > 6
    assert without_ensemble > 1
    exported = model_of_run(tmp_path / "best", 2).module.state_dict()
    assert all(torch.equal(exported[name], server_state(tmp_path / "best")["weights"][name]) for name in shared)
    assert accuracy(exported, 2) == found[-1]["nodes"]["personal/accuracy"]["2"]


def test_of_equal_models_the_newer_one_is_the_best(tiny: Make) -> None:
    """Twice the weights and biases of the last layer give the same classes; -1 times them, the least likely ones."""
    environment = Environment(tiny({"strategy": BEST}))
    strategy, state = make_strategy(environment.config.strategy)[0], RecordDict()
    start = environment.initial_weights()
    head = {name: start[name] for name in start if name.startswith("classifier")}

    def send_best(factor: float) -> Weights:
        client = LGFedAvgClient(environment, [strategy], 0, state, 0, "send_best", True)
        reply = client.send_best(Payload(weights={name: factor * tensor for name, tensor in head.items()}))
        return {name: reply.weights[name].clone() for name in head}

    def is_times(found: Weights, factor: float) -> bool:
        return all(torch.equal(found[name], factor * tensor) for name, tensor in head.items())

    first, second = send_best(1.0), send_best(-1.0)
    worse = 1.0 if is_times(second, -1.0) else -1.0
    assert is_times(first, 1.0)
    assert is_times(send_best(2.0 * -worse), 2.0 * -worse)
    assert is_times(send_best(worse), 2.0 * -worse)


def test_models_for_the_measurement_are_no_traffic_of_the_method(tiny: Make, tmp_path: Path) -> None:
    changes = {"cohort": 3, "rounds": 2, "evaluate.every": 2}
    for measured in ("newest", "best"):
        run(tiny({**changes, "strategy": {**BEST, "measured": measured}}), tmp_path / measured)
    newest, best = lines(tmp_path / "newest"), lines(tmp_path / "best")
    assert [line["bytes"] for line in best] == [line["bytes"] for line in newest]
    assert best[1]["evaluation_bytes"] == {"up": {}, "down": {}}  # not measured
    assert best[2]["evaluation_bytes"]["up"]["weights"] > 6 * 4 * 64 * 16
    assert "weights" not in newest[2]["evaluation_bytes"]["up"]


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.xdist_group("ray"))])
def test_best_models_are_the_same_when_resumed_and_with_workers(tiny: Make, tmp_path: Path, engine: str) -> None:
    changes: dict[str, Any] = {**WILD, "checkpoint": {"every": 3}}
    run(tiny(changes), tmp_path / "whole")
    if engine == "ray":
        run(tiny({**changes, "engine": {"name": "ray", "workers": 2}}), tmp_path / "ray")
        assert lines(tmp_path / "ray") == lines(tmp_path / "whole")
        name = "server.safetensors"
        assert checkpoint_bytes(tmp_path / "ray")[name] == checkpoint_bytes(tmp_path / "whole")[name]
    else:
        halves_are_the_whole(tiny(changes), tmp_path / "whole", tmp_path / "halves")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy.measured": "first"}, "strategy.measured = 'first'"),
        (
            {"model": {"names": [{"name": "mlp", "hidden": [16]}, {"name": "mlp", "hidden": [24, 16]}]}},
            "measured = 'best' needs one architecture for all nodes",
        ),
    ],
)
def test_what_the_best_models_need_is_refused_before_a_run(tiny: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_setup(tiny({"strategy": BEST, **changes})).check()

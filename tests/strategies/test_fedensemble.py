"""FedEnsemble: the mean of the logits of all nodes' models, as they lie after a round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, checkpoint_bytes, halves_are_the_whole, lines, server_state
from torch.nn import functional as F

from fedkd import Environment, InputError, Payload
from fedkd.core.setup import make_setup
from fedkd.core.wrapper import make_strategy
from fedkd.models.build import fill
from fedkd.runs.run import run
from fedkd.strategies.fedensemble import FedEnsembleClient

NORM = {"model": {"name": "convnet", "channels": [4], "norm": "batch"}, "data.train_per_class": 30}


@pytest.mark.parametrize(
    "changes", [{}, {"strategy.on": "nodes"}, NORM, {**NORM, "train.batch_norm": "local", "strategy.on": "nodes"}]
)
def test_its_prediction_is_the_mean_of_the_logits_of_all_models(
    tiny: Make, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = tiny({"strategy": {"name": "fedensemble"}, "cohort": 2, "rounds": 2, **changes})
    run(config, tmp_path / "run")
    found = lines(tmp_path / "run")
    assert "ensemble/accuracy" not in found[0]["metrics"]
    environment, states = Environment(config), {node: RecordDict() for node in range(6)}
    strategy = make_strategy(config.strategy)[0]
    weights, data = environment.initial_weights(), environment.data
    if config.strategy.options.get("on", "all") == "all":
        positions = np.arange(len(data.test.labels))
    else:
        positions = np.concatenate([data.test_parts[node] for node in range(6)])
    test = data.test.take(positions)
    images, labels = environment.preprocess(test.inputs), torch.from_numpy(test.labels)
    for number in (1, 2):
        total, trained, logits = 0, [], torch.zeros(len(labels), 10).double()
        for node in range(6):
            client = FedEnsembleClient(environment, [strategy], node, states[node], number, "fit", False)
            if node in found[number]["cohort"]:
                reply = client.fit(Payload(weights=weights))
                trained.append((int(reply.numbers["examples"]), {n: t.clone() for n, t in reply.weights.items()}))
            else:
                client.load_model(weights)
            with torch.no_grad():
                logits += client.model.eval()(images).double() / 6
        total = sum(count for count, _ in trained)
        weights = {n: sum(c / total * w[n] for c, w in trained) for n in trained[0][1]}  # type: ignore[misc]
        weights = {n: t.round().long() if n.endswith("tracked") else t for n, t in weights.items()}
        metrics = found[number]["metrics"]
        accuracy = float((logits.argmax(1) == labels).double().mean())
        assert metrics["ensemble/accuracy"] == pytest.approx(accuracy, abs=1.1 / len(labels))
        assert metrics["ensemble/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-3)
    kept = server_state(tmp_path / "run")["weights"]
    fill(environment.model(0), kept)
    for name, tensor in weights.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.xdist_group("ray"))])
def test_it_is_the_same_when_it_is_resumed_and_with_workers(tiny: Make, tmp_path: Path, engine: str) -> None:
    changes = {**NORM, "strategy": "fedensemble", "train.batch_norm": "local", "cohort": 2, "rounds": 6}
    config = tiny(changes)
    run(config, tmp_path / "whole")
    if engine == "ray":
        run(tiny({**changes, "engine": {"name": "ray", "workers": 2}}), tmp_path / "ray")
        assert lines(tmp_path / "ray") == lines(tmp_path / "whole")
        assert (
            checkpoint_bytes(tmp_path / "ray")["server.safetensors"]
            == checkpoint_bytes(tmp_path / "whole")["server.safetensors"]
        )
    else:
        halves_are_the_whole(config, tmp_path / "whole", tmp_path / "halves")


def test_without_test_samples_on_the_server_it_is_refused(tiny: Make) -> None:
    sites = {"sites": {"count": 2, "classes": ["a", "b"], "shape": [1, 8, 8]}}
    with pytest.raises(InputError, match="it needs test samples on the server"):
        make_setup(tiny({"data": sites, "strategy": "fedensemble"})).check()

"""The client half: which of its methods are requests, and what happens when one fails."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from helpers import PLUGINS, Make, lines

from fedkd import Client, Environment, Payload
from fedkd.config import Sgd, parse_config
from fedkd.core.client import actions
from fedkd.runs.run import run
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.fedprox import FedProx
from fedkd.strategies.knfu import KnFu


def test_actions_are_the_methods_that_take_a_request() -> None:
    class Mine(Client):
        def extract(self, request: Payload) -> Payload:
            return request

        def _hidden(self, request: Payload) -> Payload:
            return request

        def helper(self, request: Payload, more: int) -> None: ...

    assert actions(Mine) == ["evaluate", "extract"]


@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.xdist_group("ray"))])
def test_whatever_a_client_raises_is_its_nodes_failure(tiny: Make, tmp_path: Path, engine: str) -> None:
    table = {"name": "ray", "workers": 1} if engine == "ray" else {"name": "inline"}
    run(tiny({"strategy": f"{PLUGINS / 'leave.py'}:Leave", "engine": table}), tmp_path / "run")
    first, second = lines(tmp_path / "run")[1:]
    reasons = {failure["node"]: failure["reason"] for failure in first["failures"]}
    assert {node: reason.split(" (")[0].split(":")[0] for node, reason in reasons.items()} == {
        1: "SystemExit", 2: "KeyboardInterrupt", 3: "GeneratorExit", 4: "ValueError", 5: "Unprintable",
    }  # fmt: skip
    assert [reason for reason in reasons.values() if "leave.py:" not in reason] == []
    assert max(map(len, reasons.values())) < 500
    assert not second["failures"]


class Gaining(Client):
    reports = (*Client.reports, "own/gain")


def client_of(kind: type[Client], action: str, measured: bool) -> Client:
    return kind(Mock(), [Mock()], 3, RecordDict(), 2, action, measured)


def test_a_client_reports_what_it_declares_and_only_if_it_is_measured() -> None:
    for measured in (True, False):
        client = client_of(Gaining, "evaluate", measured)
        client.report("own/gain", -2)
        client.report("personal/accuracy", 1.0)
        assert client.metrics == ({"own/gain": -2.0, "personal/accuracy": 1.0} if measured else {})


@pytest.mark.parametrize(
    ("kind", "action", "metric", "value", "reason"),
    [
        (Client, "evaluate", "own/gain", 1.0, "metric 'own/gain' is not declared: add it to Client.reports"),
        (Gaining, "fit", "personal/loss", 1.0, "metric 'personal/loss' cannot be reported by 'fit'"),
        (Gaining, "evaluate", "personal_after_fit/accuracy", 1.0, "cannot be reported by 'evaluate'"),
        (Gaining, "evaluate", "personal/loss", -1.0, "metric 'personal/loss' is -1.0, out of range"),
    ],
)
def test_other_metrics_are_refused_where_they_are_reported(
    kind: type[Client], action: str, metric: str, value: float, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        client_of(kind, action, False).report(metric, value)


def test_a_client_has_the_public_set_of_the_run(tiny: Make) -> None:
    environment = Environment(tiny({"data.public": {"size": 40}}))
    client = Client(environment, [object()], 0, RecordDict(), 1, "fit", False)
    assert client.public is environment.data.public
    assert len(client.public.labels) == 40


def test_a_client_trains_as_the_config_says_unless_told_otherwise(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny({"train.epochs": 3, "train.steps": 7, "train.clip": 0.5, "train.lr_decay": 0.5})
    client = Client(Environment(config), [object()], 2, RecordDict(), 2, "fit", False)
    given = Mock(return_value=0.5)
    monkeypatch.setattr("fedkd.learning.training.train", given)
    client.train(client.data, client.labels, purpose="x")
    plain = given.call_args.kwargs
    assert {name: plain[name] for name in ("epochs", "batch_size", "steps", "clip", "augment")} == {
        "epochs": 3, "batch_size": 8, "steps": 7, "clip": 0.5, "augment": True,
    }  # fmt: skip
    assert plain["optimizer"].param_groups[0]["lr"] == 0.05
    client.train(client.data, client.labels, purpose="x", epochs=0, batch_size=5, augment=False)
    other = given.call_args.kwargs
    assert (other["epochs"], other["batch_size"], other["steps"], other["augment"]) == (0, 5, None, False)


def fresh(environment: Environment, state: RecordDict, node: int = 2, measured: bool = True) -> Client:
    return Client(environment, [object()], node, state, 1, "evaluate", measured)


def test_a_client_starts_from_the_initial_model_of_its_node_and_goes_on_with_its_own(tiny: Make) -> None:
    environment, state = Environment(tiny()), RecordDict()
    first = fresh(environment, state).weights()
    right = environment.initial_weights(0, 2)
    assert all(torch.equal(first[name], right[name]) for name in right)
    client = fresh(environment, state)
    client.load_model({name: tensor + 1 for name, tensor in right.items()})
    client.keep_model()
    fresh(environment, RecordDict(), node=3).weights()  # another node uses the same model object
    again = fresh(environment, state).weights()
    assert all(torch.equal(again[name], right[name] + 1) for name in right)


def test_what_a_client_keeps_is_finite_and_can_be_recalled(tiny: Make) -> None:
    client = fresh(Environment(tiny()), RecordDict())
    assert client.recall("mine") is None
    client.keep("mine", {"a": torch.ones(2), "b": torch.zeros(0)})
    kept = client.recall("mine")
    assert kept is not None
    assert kept["a"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="mine 'a' is not finite: local training has diverged"):
        client.keep("mine", {"a": torch.tensor([1.0, math.inf])})


def test_a_client_finds_the_strategy_of_a_class(tiny: Make) -> None:
    outer, inner = FedProx(mu=0.1), FedAvg()
    client = Client(Environment(tiny()), [outer, inner], 0, RecordDict(), 1, "fit", False)
    assert client.strategy is inner
    assert client.layer(FedProx) is outer
    assert client.layer(FedAvg) is outer  # the outermost of the class
    with pytest.raises(TypeError, match=r"The run's strategy contains no KnFu\."):
        client.layer(KnFu)


def test_the_evaluation_is_of_the_global_model_or_of_the_nodes_own(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(tiny())
    client = fresh(environment, RecordDict())
    client.evaluate(Payload())
    assert client.metrics.keys() == {"personal/accuracy", "personal/loss", "personal_global_test/accuracy"}
    client = fresh(environment, RecordDict())
    zeros = {name: torch.zeros_like(t) for name, t in environment.initial_weights().items()}
    client.evaluate(Payload(weights=zeros))
    assert client.metrics == {
        "personal/accuracy": float((client.test_data.labels == 0).mean()),
        "personal/loss": pytest.approx(math.log(10)),
    }
    none = dataclasses.replace(environment.data, test=environment.data.test.take(np.arange(0)))
    client = fresh(environment, RecordDict())
    assert len(client.test_data.labels) == 20
    monkeypatch.setattr(environment, "data", none)
    client.evaluate(Payload())
    assert client.metrics.keys() == {"personal/accuracy", "personal/loss"}


def test_a_module_beside_the_model_trains_with_it_and_an_optimiser_may_be_given(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = fresh(Environment(tiny()), RecordDict())
    given = Mock(return_value=0.5)
    monkeypatch.setattr("fedkd.learning.training.train", given)
    beside = torch.nn.Linear(2, 2, device="meta")
    client.train(client.data, client.labels, purpose="x", beside=beside, optimizer=Sgd(name="sgd", lr=0.7))
    groups = given.call_args.kwargs["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [0.7]
    assert len(groups[0]["params"]) == 2 + len(list(client.model.parameters()))
    client.train(client.data, client.labels, purpose="x")
    groups = given.call_args.kwargs["optimizer"].param_groups
    assert len(groups[0]["params"]) == len(list(client.model.parameters()))


@pytest.mark.parametrize("engine", ["inline", "vectorised"])
@pytest.mark.parametrize("strategy", ["fedavg", "local", "fedproto"])
def test_a_node_without_test_samples_takes_part_and_reports_no_metric_of_them(
    tmp_path: Path, strategy: str, engine: str
) -> None:
    rows = [f"{i / 7},{i % 2},{'xz'[i > 29]},{'test' if i > 40 else 'train'}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,y,who,part", *rows]))
    data = {"file": str(tmp_path / "rows.csv"), "label": "y", "node": "who", "split": "part"}
    table = {"rounds": 1, "data": {**data, "partition": {"scheme": "natural"}}, "model": {"name": "mlp"}}
    table |= {"strategy": {"name": strategy}, "engine": {"name": engine}, "evaluate": {"every": 1}}
    run(parse_config(table), tmp_path / "run")
    last = lines(tmp_path / "run")[-1]
    assert last["failures"] == []
    assert list(last["nodes"]["personal/accuracy"]) == ["1"]
    assert list(last["nodes"]["personal_after_fit/accuracy"]) == ["1"]

"""The client half: which of its methods are requests, and what happens when one fails."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from flwr.app import RecordDict
from helpers import PLUGINS, Make, lines

from fedkd import Client, Environment, Payload
from fedkd.core.client import actions
from fedkd.runs.run import run


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

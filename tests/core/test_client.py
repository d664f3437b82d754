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


def test_a_metric_is_reported_if_the_server_wants_it_and_by_its_own_request(tiny: Make) -> None:
    environment = Environment(tiny({}))
    for action, metric, other in (
        ("fit", "personal_after_fit/x", "personal/x"),
        ("evaluate", "personal/x", "personal_after_fit/x"),
    ):
        for measured in (True, False):
            client = Client(environment, [object()], 0, RecordDict(), 1, action, measured)
            client.report(metric, 0.5)
            assert client.metrics == ({metric: 0.5} if measured else {})
            with pytest.raises(ValueError, match="cannot be reported by"):
                client.report(other, 0.5)

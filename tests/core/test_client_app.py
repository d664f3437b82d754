"""The ClientApp: what a client object gets of a message, what goes back, and which errors end the process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from helpers import Make

from fedkd import Client, GlobalModelClient, Payload
from fedkd.core.client_app import call, make_client_app
from fedkd.core.setup import Setup, make_setup
from fedkd.messages.arrays import tensors_of
from fedkd.messages.flower import be_the_server, node_context
from fedkd.stopping import Stopped
from fedkd.strategies.fedavg import FedAvg


class Reporting(GlobalModelClient):
    reports: ClassVar[tuple[str, ...]] = (*GlobalModelClient.reports, "own/gain")

    def about(self, request: Payload) -> Payload:
        self.report("own/gain", 2.0)
        self.keep("mine", {"x": torch.ones(1)})
        draw = float(torch.rand(1))
        about = {"node": self.node, "round": self.round, "more": request.numbers.get("more", 0.0), "draw": draw}
        return Payload(numbers=about)

    def fail(self, request: Payload) -> Payload:
        self.keep("mine", {"x": torch.ones(1)})
        raise {0.0: ValueError("full"), 1.0: SystemExit(3), 2.0: Stopped(15)}[request.numbers["how"]]

    def end(self, request: Payload) -> Payload:
        exec(compile("raise SystemExit(3)", "site/flwr/supercore/exit/exit.py", "exec"))
        return request

    def wrong(self, request: Payload) -> Any:
        return None


@dataclass(kw_only=True)
class Reported(FedAvg):
    client: ClassVar[type[Client]] = Reporting


def app_of(tiny: Make) -> tuple[ClientApp, Setup]:
    setup = make_setup(tiny())
    setup.strategy.__class__ = Reported
    be_the_server()
    return make_client_app(setup.strategy, lambda: setup), setup


def asked(action: str, group: str, numbers: dict[str, float], **about: Any) -> Message:
    content = RecordDict({**Payload(numbers=numbers).to_records(), "round": ConfigRecord(about)})
    return Message(content, 4, action, group_id=group)


def context_of(node: int = 4) -> Context:
    return node_context(node, 6, RecordDict())


@pytest.mark.parametrize(
    ("group", "about", "node", "number", "metrics"),
    [
        ("7", {}, 4, 7, None),
        ("", {}, 4, 0, None),
        ("7", {"measured": [3, 4]}, 4, 7, {"own/gain": 2.0}),
        ("7", {"measured": [3]}, 4, 7, None),
        ("7", {"measured": [2], "node": 2}, 2, 7, {"own/gain": 2.0}),
    ],
)
def test_a_client_knows_its_node_its_round_and_whether_it_is_measured(
    tiny: Make, group: str, about: dict[str, Any], node: int, number: int, metrics: dict[str, float] | None
) -> None:
    app, _ = app_of(tiny)
    context = context_of()
    reply = call(app, asked("train.about", group, {"more": 5.0}, **about), context)
    numbers = reply.content.metric_records["numbers"]
    assert (numbers["node"], numbers["round"], numbers["more"]) == (node, number, 5.0)
    report = reply.content.metric_records.get("report")
    assert (None if report is None else dict(report)) == metrics
    assert tensors_of(context.state.array_records["mine"])["x"].tolist() == [1.0]


def test_what_a_client_draws_is_of_its_node_and_round(tiny: Make) -> None:
    app, _ = app_of(tiny)
    draws = []
    for group, node in (("1", 1), ("1", 1), ("1", 2), ("2", 1)):
        reply = call(app, asked("train.about", group, {"more": 1.0}, node=node), context_of())
        draws.append(reply.content.metric_records["numbers"]["draw"])
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_flowers_own_message_is_answered_under_flowers_names(tiny: Make) -> None:
    app, setup = app_of(tiny)
    weights = setup.environment.initial_weights()
    content = RecordDict({"arrays": Payload(weights=weights).to_records()["weights"]})
    content["round"] = ConfigRecord({"measured": [4]})
    reply = call(app, Message(content, 4, "train", group_id="1"), context_of())
    assert reply.content.keys() == {"arrays", "metrics", "report"}
    assert list(reply.content.array_records["arrays"]) == list(weights)
    metrics = dict(reply.content.metric_records["metrics"])
    assert metrics.keys() == {"num-examples", "train_loss"}
    assert metrics["num-examples"] == 24
    assert reply.content.metric_records["report"].keys() == {"personal_after_fit/accuracy"}
    del content["round"]
    assert "report" not in call(app, Message(content, 4, "train", group_id="1"), context_of()).content


@pytest.mark.parametrize(
    ("action", "how", "reason"),
    [
        ("fail", 0.0, "ValueError: full (test_client_app.py:"),
        ("fail", 1.0, "SystemExit: 3 (test_client_app.py:"),
        ("wrong", 0.0, "TypeError: Reporting.wrong must return a Payload, not NoneType"),
    ],
)
def test_an_error_of_a_client_is_a_reply_and_its_state_is_that_of_before(
    tiny: Make, action: str, how: float, reason: str
) -> None:
    app, _ = app_of(tiny)
    context = context_of()
    reply = call(app, asked(f"train.{action}", "1", {"how": how}), context)
    assert reply.has_error()
    assert reply.error.reason.startswith(reason)
    assert not context.state


def test_a_signal_and_flowers_own_exit_end_the_process(tiny: Make) -> None:
    app, _ = app_of(tiny)
    with pytest.raises(SystemExit):
        call(app, asked("train.end", "1", {}), context_of())
    with pytest.raises(Stopped):
        call(app, asked("train.fail", "1", {"how": 2.0}), context_of())


def test_a_client_without_fit_does_not_answer_flowers_message(tiny: Make) -> None:
    setup = make_setup(tiny({"strategy": {"name": "knfu"}, "data.public": {"size": 40}}))
    be_the_server()
    app = make_client_app(setup.strategy, lambda: setup)
    reply = call(app, Message(RecordDict(), 4, "train", group_id="1"), context_of())
    assert reply.has_error()
    assert reply.error.reason.startswith("ValueError: No train function registered")


@pytest.mark.parametrize(("action", "record"), [("train.fit", "weights"), ("train", "arrays")])
def test_a_reply_has_the_arrays_of_the_model_object_themselves(tiny: Make, action: str, record: str) -> None:
    app, setup = app_of(tiny)
    content = Payload(weights=setup.environment.initial_weights()).to_records()
    reply = call(app, Message(content, 4, action, group_id="1"), context_of())
    place = reply.content.array_records[record]["classifier.weight"].numpy().ctypes.data
    assert place == setup.environment.model(0).classifier.weight.data_ptr()  # type: ignore[union-attr, operator]

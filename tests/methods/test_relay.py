"""Targets of the last round go down with the next indices: each node gets its own, or all the same."""

from __future__ import annotations

import dataclasses
from unittest.mock import Mock

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make

from fedkd import Environment, Payload
from fedkd.core.round import Reply, Round
from fedkd.methods.relay import RelayClient, RelayStrategy
from fedkd.streams import torch_stream


class Relaying(RelayStrategy):
    def run_round(self, federation: Round) -> None: ...


def relayed(tiny: Make, targets: dict[str, torch.Tensor]) -> tuple[dict[int, Payload], Relaying, dict, Mock]:
    environment = Environment(tiny({"data.public": {"size": 40}}))
    federation = Round(environment, Mock(), 3, range(4), [0, 2, 3], [], [])
    replies = [Reply(node, Payload(logits={"knowledge": torch.ones(1) * node})) for node in (0, 3)]
    ask = Mock(return_value=replies)
    federation.ask = ask  # type: ignore[method-assign]
    method = Relaying(subset_size=5)
    method.targets, method.indices = targets, {"subset": torch.tensor([7])}
    knowledge = method.relay(federation)
    return ask.call_args.args[1], method, knowledge, ask


def test_each_node_gets_its_targets_with_their_indices_and_the_next_ones(tiny: Make) -> None:
    sent, method, knowledge, ask = relayed(tiny, {"0": torch.ones(2), "3": torch.zeros(2)})
    following = torch.randperm(40, generator=torch_stream(0, 3, "server", "transfer-subset"))[:5].int()
    assert sent.keys() == {0, 2, 3}
    assert [sent[node].logits["targets"].tolist() for node in (0, 3)] == [[1, 1], [0, 0]]
    assert sent[2].logits == {}
    assert [sorted(sent[node].indices) for node in (0, 2, 3)] == [["next", "subset"], ["next"], ["next", "subset"]]
    assert all(torch.equal(payload.indices["next"], following) for payload in sent.values())
    assert sent[0].indices["subset"].tolist() == [7]
    assert torch.equal(method.indices["subset"], following)  # of the targets that the next round sends
    assert {node: float(one) for node, one in knowledge.items()} == {0: 0.0, 3: 3.0}
    assert ask.call_args.args[0] == "update"
    assert ask.call_args.kwargs["expect"].logits["knowledge"].probabilities


def test_targets_for_all_are_one_payload(tiny: Make) -> None:
    sent = relayed(tiny, {"all": torch.ones(2)})[0]
    assert sent[0] is sent[2] is sent[3]
    assert sent[0].logits["targets"].tolist() == [1, 1]
    mixed = relayed(tiny, {"all": torch.ones(2), "2": torch.zeros(2)})[0]
    assert mixed[0] is mixed[3]
    assert mixed[2].logits["targets"].tolist() == [0, 0]
    assert relayed(tiny, {})[0][0].logits == {}


def test_without_a_subset_no_indices_are_sent(tiny: Make) -> None:
    federation = Round(Environment(tiny({"data.public": {"size": 40}})), Mock(), 3, range(4), [0], [], [])
    ask = Mock(return_value=[])
    federation.ask = ask  # type: ignore[method-assign]
    method = Relaying()
    method.targets = {"all": torch.ones(2)}
    method.relay(federation)
    assert (ask.call_args.args[1][0].indices, method.indices) == ({}, {})


def test_targets_and_indices_are_no_options() -> None:
    assert {field.name for field in dataclasses.fields(RelayStrategy) if field.init} == {
        "subset_size", "distil_epochs", "distil_batch_size", "loss",
    }  # fmt: skip


@pytest.mark.parametrize("targets", [None, torch.full((2, 10), 0.1)])
def test_a_node_distils_its_targets_before_it_trains_and_predicts_the_next_subset(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, targets: torch.Tensor | None
) -> None:
    environment = Environment(tiny({"data.public": {"size": 40}}))
    client = RelayClient(environment, [Relaying()], 0, RecordDict(), 1, "update", False)
    done: list[str] = []
    monkeypatch.setattr(client, "distil", lambda images, wanted, loss: done.append(f"distil {len(images.labels)}"))
    monkeypatch.setattr(client, "train_locally", lambda: done.append("train"))
    logits = {} if targets is None else {"targets": targets}
    indices = {"subset": torch.tensor([5, 1]), "next": torch.tensor([4, 2, 3])}
    reply = client.update(Payload(logits=logits, indices=indices))
    assert done == (["train"] if targets is None else ["distil 2", "train"])
    right = torch.softmax(client.predict(client.public.take(indices["next"].numpy())), 1)
    assert torch.equal(reply.logits["knowledge"], right)
    assert client.recall("model") is not None

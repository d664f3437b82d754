"""The loss towards the mean logits of a label."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, has_defaults
from helpers.formulas import Given, normal, softmax
from torch import nn

from fedkd import Environment, Payload, Round
from fedkd.methods.class_means import ClassMeans
from fedkd.methods.label_logits import LabelLogitsClient, label_logits_loss
from fedkd.strategies.fd import FD


def test_the_label_logits_loss_takes_probabilities_and_skips_what_has_no_row() -> None:
    """Public frameworks use the logits themselves as target probabilities, and get negative losses."""
    z, table, labels = normal(6, 5), normal(5, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    request = Payload(logits={"table": table}, statistics={"present": torch.tensor([1, 1, 0, 1, 1])})
    means = ClassMeans(5)
    value = label_logits_loss(request, 0.3, means)(Given(z), torch.zeros(6), labels)
    right = 0.0
    for row, label in zip(z.tolist(), labels.tolist(), strict=True):
        p = softmax(row)
        right -= math.log(p[label])
        if label != 2:
            right -= 0.3 * sum(t * math.log(q) for t, q in zip(softmax(table[label].tolist()), p, strict=True))
    assert value.item() == pytest.approx(right / 6, rel=1e-12)
    torch.testing.assert_close(means.payload("logits").logits["means"][0], ((z[0] + z[5]) / 2).float())
    plain = label_logits_loss(Payload(), 0.3, None)(Given(z), torch.zeros(6), labels)
    torch.testing.assert_close(plain, nn.functional.cross_entropy(z, labels))


def test_an_image_learns_nothing_more_without_a_table() -> None:
    z, labels = normal(3, 5), torch.tensor([0, 1, 2])
    plain = nn.functional.cross_entropy(z, labels)
    for request in (
        Payload(logits={"table": normal(5, 5)}),
        Payload(statistics={"present": torch.ones(5)}),
        Payload(logits={"table": normal(5, 5)}, statistics={"present": torch.zeros(5)}),
    ):
        torch.testing.assert_close(label_logits_loss(request, 0.3, None)(Given(z), torch.zeros(3), labels), plain)


@pytest.mark.parametrize("over", ["training", "after"])
def test_means_are_over_the_training_or_after_it(tiny: Make, over: str) -> None:
    environment = Environment(tiny({"train.epochs": 2, "train.optimizer.lr": 0.5}))
    client = LabelLogitsClient(environment, [FD(means_over=over)], 0, RecordDict(), 1, "fit", False)  # type: ignore[arg-type]
    reply = client.fit(Payload())
    means = ClassMeans(10)
    means.add(client.predict(client.data), client.labels)
    after = means.payload("logits")
    assert torch.equal(reply.logits["means"], after.logits["means"]) == (over == "after")
    assert torch.equal(reply.statistics["present"], after.statistics["present"])
    assert client.recall("model") is not None


def test_each_node_learns_from_its_table_or_from_that_of_all() -> None:
    method = FD()
    has_defaults(method, {"gamma": 1.0, "means_over": "training"})
    federation = cast(Round, SimpleNamespace(cohort=[0, 1, 2, 3]))
    assert [payload == Payload() for payload in method.teachings(federation).values()] == [True] * 4
    own, rest = ((torch.full((2, 2), value), torch.tensor([True, False])) for value in (1.0, 2.0))
    method.tables = {1: own, -1: rest}
    found = method.teachings(federation)
    assert list(found) == [0, 1, 2, 3]
    assert [float(found[node].logits["table"][0, 0]) for node in range(4)] == [2, 1, 2, 2]
    assert found[0] is found[2] is found[3]
    assert found[1].statistics["present"].dtype == torch.uint8
    assert found[1].statistics["present"].tolist() == [1, 0]
    assert "tables" not in {field.name for field in dataclasses.fields(method) if field.init}

"""The loss towards the mean logits of a label."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.formulas import Given, normal, softmax
from torch import nn

from fedkd import Payload
from fedkd.methods.class_means import ClassMeans
from fedkd.methods.label_logits import label_logits_loss


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

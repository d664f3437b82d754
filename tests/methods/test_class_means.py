"""Means over a class: they start from nothing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.methods.class_means import ClassMeans
from fedkd.streams import torch_stream


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_class_means_start_from_nothing(seed: int) -> None:
    """FedGen's tracker starts its counts at 1, and so shrinks each mean by n / (n + 1)."""
    generator = torch_stream(seed, 0, 0, "m")
    vectors, labels = torch.randn(9, 3, generator=generator), torch.randint(0, 5, (9,), generator=generator)
    means = ClassMeans(5)
    for part in torch.arange(9).split(4):
        means.add(vectors[part], labels[part])
    payload = means.payload("logits", counts=True)
    for label in range(5):
        rows = vectors[labels == label]
        assert payload.statistics["counts"][label] == len(rows)
        right = rows.mean(0) if len(rows) else torch.zeros(3)
        torch.testing.assert_close(payload.logits["means"][label], right)
    assert torch.equal(means.payload("logits").statistics["present"].bool(), payload.statistics["counts"] > 0)

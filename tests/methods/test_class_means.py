"""Means over a class: they start from nothing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import ArraySpec, Expected
from fedkd.methods.class_means import ClassMeans, expected_means, mean_over_nodes
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


def test_what_is_expected_has_a_mask_or_counts() -> None:
    masked = expected_means("prototypes", 5, 7)
    assert masked == Expected(
        prototypes={"means": ArraySpec((5, 7))}, statistics={"present": ArraySpec((5,), torch.uint8, between=(0, 1))}
    )
    counted = expected_means("logits", 5, 7, counts=True)
    assert counted == Expected(
        logits={"means": ArraySpec((5, 7))}, statistics={"counts": ArraySpec((5,), torch.int32, counts=True)}
    )
    for counts, names in ((False, {"present"}), (True, {"counts"})):
        means = ClassMeans(3)
        means.add(torch.ones(2, 4), torch.tensor([2, 2]))
        assert means.payload("logits", counts=counts).statistics.keys() == names
    assert means.payload("logits").statistics["present"].tolist() == [0, 0, 1]
    assert means.payload("logits", counts=True).statistics["counts"].tolist() == [0, 0, 2]


def test_the_mean_over_nodes_skips_those_that_lack_the_class() -> None:
    means = {
        4: torch.tensor([[1.0, 2.0], [9.0, 9.0], [5.0, 5.0]]),
        7: torch.tensor([[5.0, 0.0], [2.0, 4.0], [7.0, 7.0]]),
    }
    weights = {4: torch.tensor([3, 0, 0]), 7: torch.tensor([1, 5, 0])}
    mean, present = mean_over_nodes(means, weights)
    assert mean.tolist() == [[2.0, 1.5], [2.0, 4.0], [0.0, 0.0]]
    assert (mean.dtype, present.tolist()) == (torch.float32, [True, True, False])

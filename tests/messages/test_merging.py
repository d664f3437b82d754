"""Merging replies: means weighted by examples, exact where all are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd import Payload, weighted_mean

REPLIES = st.lists(
    st.tuples(hnp.arrays(np.float32, 4, elements=st.floats(-5, 5, width=32)), st.integers(1, 500)),
    min_size=1,
    max_size=9,
)


@given(REPLIES)
@settings(deadline=None)
def test_weighted_mean_is_the_mean_weighted_by_examples(replies: list) -> None:
    total = None
    for array, examples in replies:
        one = Payload(
            weights={"w": torch.from_numpy(array.copy())}, numbers={"examples": examples, "loss": float(array[0])}
        )
        total = one if total is None else weighted_mean(total, one)
    assert total is not None
    counts = np.array([n for _, n in replies], np.float64)
    right = sum(a.astype(np.float64) * n for a, n in replies) / counts.sum()
    np.testing.assert_allclose(total.weights["w"].numpy(), right, atol=5e-6)
    np.testing.assert_allclose(total.numbers["loss"], right[0], atol=5e-6)
    assert total.numbers["examples"] == counts.sum()


@given(hnp.arrays(np.float32, 3, elements=st.floats(-1e3, 1e3, width=32)), st.lists(st.integers(1, 10**4), min_size=2))
@settings(deadline=None)
def test_the_mean_of_equal_arrays_is_exactly_that_array(array: np.ndarray, counts: list[int]) -> None:
    total = Payload(weights={"w": torch.from_numpy(array.copy())}, numbers={"examples": counts[0]})
    for count in counts[1:]:
        total = weighted_mean(total, Payload(weights={"w": torch.from_numpy(array)}, numbers={"examples": count}))
    assert np.array_equal(total.weights["w"].numpy(), array)


def test_counters_are_averaged_and_rounded() -> None:
    one = Payload(weights={"n": torch.tensor(10)}, numbers={"examples": 1})
    merged = weighted_mean(one, Payload(weights={"n": torch.tensor(20)}, numbers={"examples": 2}))
    assert merged.weights["n"].item() == 17
    assert merged.weights["n"].dtype == torch.int64


@pytest.mark.parametrize("value", [2**53 + 1, 2**62, -(2**53) - 1, 0])
def test_equal_integers_stay_exactly_as_they_are(value: int) -> None:
    total = Payload(weights={"n": torch.tensor([value])}, numbers={"examples": 3})
    for examples in (1, 5):
        weighted_mean(total, Payload(weights={"n": torch.tensor([value])}, numbers={"examples": examples}))
    assert total.weights["n"].tolist() == [value]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_integers_are_merged_as_integers_of_their_type(dtype: torch.dtype) -> None:
    one = Payload(weights={"n": torch.tensor([1, 0]).to(dtype)}, numbers={"examples": 1})
    merged = weighted_mean(one, Payload(weights={"n": torch.tensor([0, 1]).to(dtype)}, numbers={"examples": 3}))
    assert merged.weights["n"].dtype == dtype
    assert merged.weights["n"].long().tolist() == [0, 1]

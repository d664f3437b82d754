"""Merging replies: means weighted by examples, exact where all are equal."""

from __future__ import annotations

from functools import partial, reduce

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd import Payload, mean_weighted_by, uniform_mean, weighted_mean
from fedkd.config import Limits
from fedkd.errors import PayloadError
from fedkd.messages.arrival import Door
from fedkd.messages.flower import be_the_server
from fedkd.messages.merging import Merge, blocks_of, merge_block
from fedkd.messages.payload import from_records

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


def test_a_block_is_five_messages_in_their_order() -> None:
    messages = list(range(12))
    assert blocks_of(messages) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize("lacks", ["first", "second", "both"])
def test_a_mean_needs_the_examples_of_both(lacks: str) -> None:
    pair = [Payload(numbers={} if lacks in (name, "both") else {"examples": 2}) for name in ("first", "second")]
    with pytest.raises(PayloadError, match="needs the number 'examples' in each reply"):
        weighted_mean(*pair)


def test_replies_without_examples_to_weigh_leave_the_first() -> None:
    pair = [Payload(weights={"w": torch.tensor([value])}, numbers={"examples": 0}) for value in (1.0, 5.0)]
    assert weighted_mean(*pair).weights["w"].tolist() == [1.0]


def three(*values: float) -> list[Payload]:
    return [
        Payload(weights={"w": torch.tensor([value])}, numbers={"examples": examples, "loss": 10 * value})
        for value, examples in zip(values, (3.0, 1.0, 5.0), strict=False)
    ]


def pairs_of(examples: int) -> int:
    return -(-examples // 2)


@pytest.mark.parametrize(
    ("merge", "weights"), [(uniform_mean, (1, 1, 1)), (partial(mean_weighted_by, weight=pairs_of), (2, 1, 3))]
)
def test_a_mean_may_be_weighted_by_a_function_of_the_examples(merge: Merge, weights: tuple[int, ...]) -> None:
    """The last reply is a block of its own, as in a cohort of six."""
    one, two, last = three(1.0, 4.0, -2.0)
    found = merge(merge(one, two), last)
    right = (1 * weights[0] + 4 * weights[1] - 2 * weights[2]) / sum(weights)
    assert found.weights["w"].item() == pytest.approx(right, abs=1e-6)
    assert found.numbers["loss"] == pytest.approx(10 * right)
    assert (found.numbers["replies"], found.numbers["weight"]) == (3, sum(weights))
    assert "replies" not in two.numbers  # only the first payload may change


def test_blocks_of_replies_count_with_their_sums() -> None:
    first, second = (reduce(uniform_mean, three(*values)) for values in ((1.0, 2.0, 3.0), (5.0, 6.0)))
    found = uniform_mean(first, second)
    assert found.weights["w"].item() == pytest.approx(3.4)
    assert (found.numbers["replies"], found.numbers["weight"]) == (5, 5)


def test_replies_of_weight_zero_leave_the_first() -> None:
    pair = three(1.0, 5.0)
    assert mean_weighted_by(*pair, weight=lambda examples: 0).weights["w"].tolist() == [1.0]


def replies(values: list[float]) -> list[Message]:
    be_the_server()
    payloads = [Payload(weights={"w": torch.tensor([v])}, numbers={"examples": 1}) for v in values]
    asked = Message(RecordDict(), 3, "train.fit")
    return [Message(payload.to_records(), reply_to=asked) for payload in payloads]


def test_a_merge_of_ones_own_may_keep_the_second_payload_and_no_merge_changes_a_reply() -> None:
    door = Door(None, Limits(10**6, {}))
    kept: list[Payload] = []

    def keep(total: Payload, reply: Payload) -> Payload:
        kept.append(reply)
        return total

    messages = replies([1.0, 5.0])
    assert merge_block(messages, keep, door).merged is not None
    kept[0].weights["w"].add_(1)
    sent = [from_records(message.content).weights["w"].item() for message in messages]
    assert sent == [1.0, 5.0]
    block = merge_block(messages, weighted_mean, door)
    assert block.merged is not None
    assert from_records(block.merged).weights["w"].item() == 3.0
    assert [from_records(message.content).weights["w"].item() for message in messages] == [1.0, 5.0]
    assert [arrival.payload for arrival in block.arrivals] == [None, None]
    assert merge_block([], weighted_mean, door).merged is None


def test_a_merged_block_is_not_copied_once_more() -> None:
    totals: list[Payload] = []

    def keep(total: Payload, reply: Payload) -> Payload:
        totals.append(total)
        return total

    block = merge_block(replies([1.0, 5.0]), keep, Door(None, Limits(10**6, {})))
    assert block.merged is not None
    merged = block.merged.array_records["weights"]["w"].numpy()
    assert merged.ctypes.data == totals[0].weights["w"].data_ptr()

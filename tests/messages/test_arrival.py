"""Nothing that is wrong, or that was not asked for, gets past the check on arrival."""

from __future__ import annotations

import math

import pytest
import torch

from fedkd import ArraySpec, Expected, Payload, like
from fedkd.config import Limits
from fedkd.messages.arrays import PayloadError
from fedkd.messages.arrival import receive
from fedkd.messages.payload import IMAGES

LIMIT = Limits(10**6, {"images": 1000})


WEIGHTS = {"w": torch.ones(2, 3), "n": torch.tensor(4)}


EXPECTED = Expected(weights=like(WEIGHTS), numbers={"examples": (1, math.inf)})


def good() -> Payload:
    return Payload(weights={k: v.clone() for k, v in WEIGHTS.items()}, numbers={"examples": 5})


def test_what_was_asked_for_is_received() -> None:
    assert torch.equal(receive(good().to_records(), EXPECTED, LIMIT).weights["w"], WEIGHTS["w"])


def _change(**changes: object) -> Payload:
    payload = good()
    for key, value in changes.items():
        if value is None:
            del payload.weights[key]
        else:
            payload.weights[key] = value  # type: ignore[assignment]
    return payload


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (_change(w=torch.full((2, 3), math.nan)), "weights 'w' has values that are not finite"),
        (_change(w=torch.full((2, 3), math.inf)), "weights 'w' has values that are not finite"),
        (_change(w=torch.ones(3, 2)), r"weights 'w' has shape \(3, 2\), expected was \(2, 3\)"),
        (_change(w=torch.ones(2, 3).double()), "weights 'w' has dtype torch.float64, expected was torch.float32"),
        (_change(w=None), "weights without 'w'"),
        (_change(extra=torch.ones(1)), "weights has 'extra', which was not asked for"),
        (Payload(weights=good().weights), "numbers without 'examples'"),
        (Payload(weights=good().weights, numbers={"examples": 0}), "number 'examples' is 0, valid is 1 to inf"),
        (Payload(weights=good().weights, numbers={"examples": math.nan}), "number 'examples' is nan"),
        (Payload(weights=good().weights, numbers={"examples": 1}, logits={"z": torch.ones(1)}), "logits has 'z'"),
    ],
)
def test_what_was_not_asked_for_is_refused_by_name(payload: Payload, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        receive(payload.to_records(), EXPECTED, LIMIT)


def test_a_spec_may_leave_a_length_open() -> None:
    expected = Expected(logits={"z": ArraySpec((None, 10))})
    assert receive(Payload(logits={"z": torch.ones(7, 10)}).to_records(), expected, LIMIT)
    with pytest.raises(PayloadError, match=r"shape \(7, 9\), expected was \(None, 10\)"):
        receive(Payload(logits={"z": torch.ones(7, 9)}).to_records(), expected, LIMIT)


def test_a_payload_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadError, match="payload of 4000129 bytes is over the limit of 1000000"):
        receive(Payload(weights={"w": torch.ones(10**6)}).to_records(), None, LIMIT)


def test_every_limit_is_told_by_its_kind() -> None:
    payload = Payload(images={"x": torch.zeros(1, 1, 40, 40, dtype=torch.uint8)}, logits={"z": torch.zeros(10**4)})
    with pytest.raises(PayloadError, match="images of 1729 bytes are over the limit of 1000"):
        receive(payload.to_records(), None, LIMIT)
    assert receive(Payload(logits={"z": torch.zeros(10**4)}).to_records(), None, LIMIT)


def test_counts_of_images_are_bounded_by_what_the_node_has() -> None:
    expected = Expected(
        statistics={"counts": ArraySpec((2,), torch.int32, counts=True)}, numbers={"examples": IMAGES}, most_images=10
    )

    def reported(counts: list[int], examples: float) -> Payload:
        return Payload(statistics={"counts": torch.tensor(counts, dtype=torch.int32)}, numbers={"examples": examples})

    assert receive(reported([4, 6], 10).to_records(), expected, LIMIT)
    for counts, examples, message in (
        ([5, 6], 10, "statistics 'counts' counts 11 images, but the node has 10"),
        ([-1, 6], 10, "statistics 'counts' has values outside 0.0 to"),
        ([5, 5], 11, "number 'examples' is 11, valid is 1 to 10, whole"),
        ([5, 5], 0, "number 'examples' is 0, valid is 1 to 10, whole"),
    ):
        with pytest.raises(PayloadError, match=message):
            receive(reported(counts, examples).to_records(), expected, LIMIT)

"""Payloads cross Flower's records unchanged, and no pickle takes part."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from helpers import HOME
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd import ArraySpec, Expected, Payload, expected_model
from fedkd.config import Limits
from fedkd.errors import PayloadError
from fedkd.messages.arrival import receive
from fedkd.messages.payload import ANY_NUMBER, IMAGES, LOSS, MOST_IMAGES, from_records, like

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(st.dictionaries(st.sampled_from("abc"), ARRAYS), st.dictionaries(st.text(), st.text()))
@settings(deadline=None)
def test_a_payload_crosses_unchanged(arrays: dict, strings: dict) -> None:
    payload = Payload(
        logits={name: torch.from_numpy(array) for name, array in arrays.items()},
        numbers={"examples": 3},
        strings=strings,
    )
    back = from_records(payload.to_records())
    assert back.numbers == payload.numbers
    assert back.strings == strings
    assert set(back.logits) == set(arrays)
    for name, tensor in back.logits.items():
        assert tensor.dtype == payload.logits[name].dtype
        assert tensor.numpy().tobytes() == arrays[name].tobytes()


def test_nothing_of_ours_unpickles() -> None:
    home = HOME
    sources = [path for part in ("fedkd", "strategies", "deploy") for path in sorted((home / part).rglob("*.py"))]
    assert len(sources) > 60
    unpickling = (
        r"pickle\.|import pickle|torch\.load\b(?!\(.*weights_only=True)|allow_pickle=True|(?<![.\w])(eval|exec)\("
    )
    for path in sources:
        assert not re.search(unpickling, path.read_text()), path


def test_ranges_and_specs_are_what_their_comments_say() -> None:
    assert MOST_IMAGES == 2_147_483_647  # of int32
    assert IMAGES == (1.0, 2_147_483_647.0)
    assert LOSS == (-0.0001, 3.4e38)
    assert ANY_NUMBER == (-3.4e38, 3.4e38)
    assert ArraySpec((2,)) == ((2,), torch.float32, None, False, False, None)
    assert Expected().most_images == MOST_IMAGES
    model = {"w": torch.zeros(2)}
    assert expected_model(model).numbers == {"examples": IMAGES, "loss": LOSS}
    assert expected_model(model, unweighted=True).numbers == {"examples": (1.0, 1.0), "loss": LOSS}


def test_integers_of_a_model_are_constants_but_for_counters() -> None:
    weights = {"bn.num_batches_tracked": torch.tensor(4), "index": torch.arange(3), "w": torch.zeros(2)}
    expected = Expected(weights=like(weights))
    fine = {**weights, "bn.num_batches_tracked": torch.tensor(9), "w": torch.ones(2)}
    receive(Payload(weights=fine).to_records(), expected, Limits(10_000, {}))
    with pytest.raises(PayloadError, match="weights 'index' has other values than at the server: integers of a model"):
        receive(Payload(weights=fine | {"index": torch.tensor([0, 1, 3])}).to_records(), expected, Limits(10_000, {}))


def test_what_is_no_part_of_the_payload_is_left_out() -> None:
    records = RecordDict(
        {
            "round": ConfigRecord({"a": "b"}),
            "report": MetricRecord({"personal/accuracy": 1.0}),
            "site": ConfigRecord({"name": "x"}),
            "numbers": MetricRecord({"a": 1.0, "more": [1.0, 2.0]}),
            "strings": ConfigRecord({"text": "t", "bytes": b"b"}),
        }
    )
    assert from_records(records) == Payload(numbers={"a": 1.0}, strings={"text": "t"})
    assert not Payload().to_records()

"""Payloads cross Flower's records unchanged, and no pickle takes part."""

from __future__ import annotations

import re

import numpy as np
import torch
from helpers import HOME
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd import Payload
from fedkd.messages.payload import from_records

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
    unpickling = r"pickle\.|import pickle|torch\.load\b|allow_pickle=True|(?<![.\w])(eval|exec)\("
    for path in sources:
        assert not re.search(unpickling, path.read_text()), path

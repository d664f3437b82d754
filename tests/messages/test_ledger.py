"""The ledger counts bytes as they are serialised."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedkd import Payload
from fedkd.messages.ledger import count_bytes
from fedkd.messages.payload import from_records


def test_bytes_are_counted_as_serialised() -> None:
    payload = Payload(
        logits={"z": torch.ones(300, 10)},
        numbers={"examples": 3},
        strings={"hash": "abcd"},
        indices={"i": torch.ones(5)},
    )
    sizes = count_bytes(payload.to_records())
    assert sizes == {"logits": 300 * 10 * 4 + 128 + 1, "indices": 20 + 128 + 1, "numbers": 8 + 8, "strings": 4 + 4}


def test_what_the_core_adds_is_not_counted_and_flowers_arrays_are_weights() -> None:
    array = Array(np.ones(2, np.float32))
    records = RecordDict({"arrays": ArrayRecord({"w": array}), "report": MetricRecord({"personal/accuracy": 0.5})})
    assert count_bytes(records) == {"weights": 8 + 128 + 1}
    assert torch.equal(from_records(records).weights["w"], torch.ones(2))

"""The ledger counts bytes as they are serialised."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedkd import Payload
from fedkd.messages.flower import be_the_server
from fedkd.messages.ledger import all_bytes, count_bytes, count_sent, no_bytes
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


def test_every_value_of_a_record_is_counted() -> None:
    numbers = MetricRecord({"a": 1.0, "bc": [1, 2, 3]})
    strings = ConfigRecord({"t": "ä", "b": b"1234", "l": ["x", "yz"]})
    records = RecordDict({"numbers": numbers, "strings": strings, "round": ConfigRecord({"n": 1})})
    sizes = {"numbers": (1 + 8) + (2 + 24), "strings": (1 + 2) + (1 + 4) + (1 + 3)}
    assert count_bytes(records) == sizes
    assert all_bytes(records) == sum(sizes.values()) + 9


def test_shared_content_counts_for_each_node() -> None:
    be_the_server()
    content = RecordDict({"numbers": MetricRecord({"a": 1.0})})
    ledger = no_bytes()
    count_sent([Message(content, node, "train.fit") for node in (1, 2, 3)], ledger)
    count_sent([Message(RecordDict({"strings": ConfigRecord({"t": "x"})}), 4, "train.fit")], ledger)
    assert ledger == {"up": {}, "down": {"numbers": 27, "strings": 2}}

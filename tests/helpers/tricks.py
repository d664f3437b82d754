"""What a hostile site may make of its reply to `fit`: each trick changes the reply's records in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedkd.messages.arrays import array_record, serialised, tensors_of

Trick = Callable[[RecordDict], None]


def weights_of(content: RecordDict) -> dict[str, torch.Tensor]:
    return tensors_of(content["weights"])  # type: ignore[arg-type]


def set_weights(content: RecordDict, weights: dict[str, torch.Tensor]) -> None:
    content["weights"] = serialised(RecordDict({"weights": array_record(weights)}))["weights"]


def one_value(value: float) -> Trick:
    def trick(content: RecordDict) -> None:
        weights = weights_of(content)
        next(iter(weights.values())).view(-1)[0] = value
        set_weights(content, weights)

    return trick


def more_arrays(content: RecordDict) -> None:
    set_weights(content, {**weights_of(content), **{f"a{n}": torch.zeros(1) for n in range(10_001)}})


def other_name(name: str) -> Trick:
    return lambda content: set_weights(content, {**weights_of(content), name: torch.zeros(1)})


def numbers(**changed: float) -> Trick:
    def trick(content: RecordDict) -> None:
        content["numbers"] = MetricRecord({**content["numbers"], **changed})  # type: ignore[dict-item]

    return trick


def record(kind: str, value: Any) -> Trick:
    def trick(content: RecordDict) -> None:
        content[kind] = value

    return trick


BIG = ArrayRecord({"w": Array("float32", (10**7,), "numpy.ndarray", b"x" * 4 * 10**7)})
TRICKS: dict[str, Trick] = {
    "nan": one_value(math.nan),
    "infinity": one_value(-math.inf),
    "a huge value": one_value(1e30),
    "ten thousand arrays": more_arrays,
    "a name that was not asked for": other_name("extra"),
    "a name that is no text": other_name("\ud800"),
    "a name that moves the cursor": other_name("\x1b[2J"),
    "a long name": other_name("x" * 10**5),
    "40 MB beside": record("report", BIG),
    "40 MB about itself": record("site", BIG),
    "a kind that does not exist": record("secrets", BIG),
    "a list of numbers": record("numbers", MetricRecord({"examples": [1.0] * 10**5})),
    "bytes": record("strings", ConfigRecord({"a": b"x" * 10**5})),
    "no images": numbers(examples=0),
    "half an image": numbers(examples=2.5),
    "all images of the world": numbers(examples=2.0**31 - 1),
    "a loss below 0": numbers(loss=-1e30),
    "a loss beyond float32": numbers(loss=1.7e308),
    "a number more": numbers(other=1.0),
    "the server's metric": record("report", MetricRecord({"global/accuracy": 1.0})),
    "a metric that was not asked for": record("report", MetricRecord({"personal/accuracy": 1.0})),
    "nothing": lambda content: content.clear(),
}  # fmt: skip

"""The check of a payload that arrives: sizes, names, shapes, dtypes, finite values, and a node's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import SupportsFloat, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from ..config import KINDS, Limits
from ..errors import on_one_line
from .arrays import PayloadError, is_finite
from .ledger import count_bytes
from .metric_names import checked_metric
from .payload import IMAGES, MOST_IMAGES, OUTSIDE, REPORT, Expected, Payload, from_records

Expectation = Expected | Mapping[int, Expected] | None  # one for all nodes, or one for each
_MOST_METRICS = 100  # metrics of a reply
_ROUNDING = 1e-3  # tolerance for the sum of a row of probabilities, also in half precision


def receive(records: RecordDict, expected: Expected | None, limits: Limits, copy: bool = True) -> Payload:
    """Decode and check received records: sizes, names, shapes, dtypes, finite values, numbers in range.

    Sizes are checked before anything is decoded. Without `expected`, only sizes and finite values are checked.
    `copy` as in `from_records`. Raises PayloadError.
    """
    sizes = count_bytes(records)
    size = sum(sizes.values())
    if size > limits.total:
        raise PayloadError(f"payload of {size} bytes is over the limit of {limits.total}")
    for kind, most in limits.kinds.items():
        if sizes.get(kind, 0) > most:
            raise PayloadError(f"{kind} of {sizes[kind]} bytes are over the limit of {most}")
    payload = from_records(records, copy)
    for key, record in records.items():
        plain = str if isinstance(record, ConfigRecord) else int | float
        if key in OUTSIDE or isinstance(record, ArrayRecord):
            continue
        if wrong := [name for name, value in record.items() if not isinstance(value, plain)]:
            raise PayloadError(f"{key} {wrong[0]!r} is neither a number nor a text")
    for kind, arrays in payload.by_kind():
        for name, tensor in arrays.items():
            if not is_finite(tensor):
                raise PayloadError(f"{kind} {name!r} has values that are not finite")
    for name, number in payload.numbers.items():
        if not math.isfinite(number):
            raise PayloadError(f"number {name!r} is {number}")
    if expected is not None:
        _check_names(payload, expected)
    return payload


def _check_names(payload: Payload, expected: Expected) -> None:
    for kind in (*KINDS, "numbers", "strings"):
        got, wanted = getattr(payload, kind), getattr(expected, kind)
        if not got and not wanted:
            continue
        got, wanted = set(got), set(wanted)
        if missing := wanted - got:
            raise PayloadError(f"{kind} without {', '.join(map(repr, sorted(missing)))}")
        if surplus := got - wanted:
            raise PayloadError(f"{kind} has {', '.join(map(repr, sorted(surplus)))}, which was not asked for")
    for kind, arrays in payload.by_kind():
        for name, tensor in arrays.items():
            shape, dtype, between, probabilities, counts = getattr(expected, kind)[name]
            fits = len(shape) == tensor.dim() and all(
                want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
            )
            if not fits:
                raise PayloadError(f"{kind} {name!r} has shape {tuple(tensor.shape)}, expected was {shape}")
            if tensor.dtype != dtype:
                raise PayloadError(f"{kind} {name!r} has dtype {tensor.dtype}, expected was {dtype}")
            bounds = between or _range(probabilities, counts)
            if bounds is not None and tensor.numel():
                (low, high), (least, most) = bounds, torch.aminmax(tensor)
                if not low <= float(least) <= float(most) <= high:
                    raise PayloadError(f"{kind} {name!r} has values outside {low} to {high}")
            if probabilities and bool(((tensor.double().sum(-1) - 1).abs() > _ROUNDING).any()):
                raise PayloadError(f"{kind} {name!r} has rows that do not sum to 1")
            if counts and int(tensor.sum(dtype=torch.float64)) > expected.most_images:
                raise PayloadError(
                    f"{kind} {name!r} counts {int(tensor.sum(dtype=torch.float64))} images, "
                    f"but the node has {expected.most_images}"
                )
    for name, (low, high) in expected.numbers.items():
        high = min(high, expected.most_images) if (low, high) == IMAGES else high
        if not low <= payload.numbers[name] <= high:
            raise PayloadError(f"number {name!r} is {payload.numbers[name]}, valid is {low} to {high}")


def _range(probabilities: bool, counts: bool) -> tuple[float, float] | None:
    if counts:
        return 0.0, float(MOST_IMAGES)
    return (0.0, 1.0) if probabilities else None


@dataclass
class Arrival:
    """The result of one request: the reply's payload or the failure, its size, and the node's metrics."""

    node: int
    payload: Payload | None = None
    failure: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def arrive(reply: Message, expectation: Expectation, limits: Limits, copy: bool = True) -> Arrival:
    """Check a reply before any strategy sees it; any error in it becomes a failure of its node.

    Without `copy`, the arrays may share memory with the reply's arrays and must not be changed.
    """
    node = reply.metadata.src_node_id
    if reply.has_error():
        return Arrival(node, failure=reply.error.reason or f"error {reply.error.code}")
    arrival = Arrival(node, sizes=count_bytes(reply.content))
    expected = expectation.get(node) if isinstance(expectation, Mapping) else expectation
    try:
        arrival.payload = receive(reply.content, expected, limits, copy)
    except PayloadError as error:
        arrival.failure = on_one_line(f"bad reply: {error}")
        return arrival
    try:
        arrival.metrics = _metrics(reply.content.get(REPORT))
    except PayloadError as error:
        arrival.payload, arrival.failure = None, f"bad reply: {error}"
    return arrival


def _metrics(report: object) -> dict[str, float]:
    """Return the metrics that a node reports. Raises PayloadError for wrong names and values that are not finite."""
    if not isinstance(report, MetricRecord):
        return {}
    if len(report) > _MOST_METRICS:
        raise PayloadError(f"{len(report)} metrics; a reply may have {_MOST_METRICS} at most")
    metrics = {}
    for name, value in report.items():
        try:
            metrics[name] = checked_metric(name, cast(SupportsFloat, value))
        except ValueError as error:
            raise PayloadError(on_one_line(str(error))) from None
    return metrics

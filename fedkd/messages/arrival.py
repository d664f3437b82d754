"""The door: all that a node sends passes here before it is decoded, counted, kept or shown.

Checked are the form (records, names, how many), sizes, shapes, dtypes, values, and the node's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, SupportsFloat, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from ..config import KINDS, Limits
from ..errors import PayloadError, described, on_one_line, some
from .arrays import are_within
from .ledger import bytes_outside, count_bytes
from .metric_names import MOST, belongs_to, checked_metric, scope_of
from .payload import (
    COUNTER,
    FLOWER_ARRAYS,
    FLOWER_METRICS,
    IMAGES,
    MOST_IMAGES,
    NUMBERS,
    REPORT,
    STRINGS,
    Expected,
    Payload,
    from_records,
)

Expectation = Expected | Mapping[int, Expected] | None  # one for all nodes, or one for each
_MOST_METRICS = 100  # metrics of a reply
_MOST_ARRAYS = 10_000  # arrays, numbers and texts of a reply, together
_LONGEST_NAME = 200
_MOST_COUNTED = 2**53  # of a counter of batch norm: exact in float64
_TYPES: dict[str, type] = {
    **dict.fromkeys((*KINDS, FLOWER_ARRAYS), ArrayRecord),
    **dict.fromkeys((NUMBERS, FLOWER_METRICS, REPORT), MetricRecord),
    STRINGS: ConfigRecord,
}  # the records that a reply may have
_ROUNDING = 1e-3  # tolerance for the sum of a row of probabilities, also in half precision


class AskedMetrics(NamedTuple):
    """The metrics that a request asked for: these, of these nodes, and of no scope that the server measures."""

    action: str
    nodes: frozenset[int]
    names: frozenset[str]
    server_scopes: frozenset[str] = frozenset()


def receive(records: RecordDict, expected: Expected | None, limits: Limits, copy: bool = True) -> Payload:
    """Decode and check received records: names, sizes, shapes, dtypes, finite values, numbers in range.

    Names and sizes are checked before anything is decoded. Without `expected`, shapes and the names that were asked for
    are not checked. `copy` as in `from_records`. Raises PayloadError.
    """
    return _receive(records, count_bytes(records), expected, limits, copy)


def _receive(
    records: RecordDict, sizes: Mapping[str, int], expected: Expected | None, limits: Limits, copy: bool
) -> Payload:
    _check_form(records)
    size = sum(sizes.values()) + bytes_outside(records)
    if size > limits.total:
        raise PayloadError(f"payload of {size} bytes is over the limit of {limits.total}")
    for kind, most in limits.kinds.items():
        if sizes.get(kind, 0) > most:
            raise PayloadError(f"{kind} of {sizes[kind]} bytes are over the limit of {most}")
    payload = from_records(records, copy)
    for kind, arrays in payload.by_kind():
        for name, tensor in arrays.items():
            if not are_within(tensor, limits.value):
                raise PayloadError(f"{kind} {name!r} has values that are not finite, or beyond {limits.value:g}")
            bounds = _batch_norm_range(name)
            if bounds is not None and tensor.numel():
                low, high = bounds
                if not low <= tensor.min().item() <= tensor.max().item() <= high:
                    raise PayloadError(f"{kind} {name!r} has values outside {low:g} to {high:g}")
    for name, number in payload.numbers.items():
        if not abs(number) <= MOST:
            raise PayloadError(f"number {name!r} is {number}")
    if expected is not None:
        _check_names(payload, expected)
    return payload


def _check_form(records: RecordDict) -> None:
    """Check what costs nothing to look at: the kinds of records, their names, how many there are, plain values."""
    if sum(map(len, records.values())) > _MOST_ARRAYS:
        raise PayloadError(f"more than {_MOST_ARRAYS} arrays, numbers and texts")
    for key, record in records.items():
        wanted = _TYPES.get(key)
        if wanted is None or not isinstance(record, wanted):
            raise PayloadError(
                f"a {type(record).__name__} of kind {on_one_line(key, 80)!r}, valid are {', '.join(_TYPES)}"
            )
        for name, value in record.items():
            if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
                raise PayloadError(
                    f"{key} has the name {on_one_line(name, 80)!r}: {_LONGEST_NAME} plain characters at most"
                )
            if not isinstance(value, int | float if wanted is MetricRecord else str) and wanted is not ArrayRecord:
                raise PayloadError(f"{key} {name!r} is neither a number nor a text")


def _batch_norm_range(name: str) -> tuple[float, float] | None:
    """Return the smallest and the largest value of a buffer of batch norm, by its name; None for any other array."""
    if name.endswith("running_var"):
        return 0.0, MOST
    return (0.0, _MOST_COUNTED) if name.endswith(COUNTER) else None


def _check_names(payload: Payload, expected: Expected) -> None:
    for kind in (*KINDS, "numbers", "strings"):
        got, wanted = getattr(payload, kind), getattr(expected, kind)
        if not got and not wanted:
            continue
        got, wanted = set(got), set(wanted)
        if missing := wanted - got:
            raise PayloadError(f"{kind} without {some(sorted(map(repr, missing)), 5)}")
        if surplus := got - wanted:
            raise PayloadError(f"{kind} has {some(sorted(map(repr, surplus)), 5)}, which was not asked for")
    for kind, arrays in payload.by_kind():
        for name, tensor in arrays.items():
            shape, dtype, between, probabilities, counts, constant = getattr(expected, kind)[name]
            fits = tensor.shape == shape or (
                len(shape) == tensor.dim()
                and all(want is None or want == have for want, have in zip(shape, tensor.shape, strict=True))
            )
            if not fits:
                raise PayloadError(f"{kind} {name!r} has shape {tuple(tensor.shape)}, expected was {shape}")
            if tensor.dtype != dtype:
                raise PayloadError(f"{kind} {name!r} has dtype {tensor.dtype}, expected was {dtype}")
            if constant is not None and not torch.equal(tensor, constant):
                raise PayloadError(
                    f"{kind} {name!r} has other values than at the server: integers of a model are constants, "
                    "which are not averaged; let the model keep them out of its state (persistent=False)"
                )
            bounds = between or _range(probabilities, counts)
            if bounds is not None and tensor.numel():
                (low, high), (least, most) = bounds, torch.aminmax(tensor)
                if not low <= least.item() <= most.item() <= high:
                    raise PayloadError(f"{kind} {name!r} has values outside {low} to {high}")
            if probabilities and bool(((tensor.double().sum(-1) - 1).abs() > _ROUNDING).any()):
                raise PayloadError(f"{kind} {name!r} has rows that do not sum to 1")
            if counts and tensor.is_floating_point() and not torch.equal(tensor, tensor.round()):
                raise PayloadError(f"{kind} {name!r} counts parts of images")
            if counts and int(tensor.sum(dtype=torch.float64)) > expected.most_images:
                raise PayloadError(
                    f"{kind} {name!r} counts {int(tensor.sum(dtype=torch.float64))} images, "
                    f"but the node has {expected.most_images}"
                )
    for name, (low, high) in expected.numbers.items():
        counts = (low, high) == IMAGES
        high = min(high, expected.most_images) if counts else high
        number = payload.numbers[name]
        if not low <= number <= high or (counts and number != int(number)):
            valid = f"{low:.9g} to {high:.9g}" + (", whole" if counts else "")
            raise PayloadError(f"number {name!r} is {number}, valid is {valid}")


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


def arrive(
    reply: Message, expectation: Expectation, limits: Limits, copy: bool = True, asked: AskedMetrics | None = None
) -> Arrival:
    """Check a reply before any strategy sees it; any error in it becomes a failure of its node.

    Without `copy`, the arrays may share memory with the reply's arrays and must not be changed. Without `asked`, the
    node was asked for no metrics.
    """
    node = reply.metadata.src_node_id
    if reply.has_error():
        return Arrival(node, failure=on_one_line(reply.error.reason or f"error {reply.error.code}", 1000))
    arrival = Arrival(node)
    expected = expectation.get(node) if isinstance(expectation, Mapping) else expectation
    try:
        arrival.sizes = count_bytes(reply.content)
        payload = _receive(reply.content, arrival.sizes, expected, limits, copy)
        arrival.metrics = _metrics(reply.content.get(REPORT), node, asked)
        arrival.payload = payload
    except PayloadError as error:
        arrival.failure = on_one_line(f"bad reply: {error}")
    except Exception as error:  # whatever a node has sent, it is this node's failure only
        arrival.failure = on_one_line(f"bad reply: it cannot be read: {described(error)}")
    return arrival


class Door(NamedTuple):
    """What the replies to one request are checked against: see `arrive`."""

    expectation: Expectation
    limits: Limits
    asked: AskedMetrics | None = None

    def let_in(self, reply: Message, copy: bool = True) -> Arrival:
        """Check a reply."""
        return arrive(reply, self.expectation, self.limits, copy, self.asked)


def _metrics(report: object, node: int, asked: AskedMetrics | None) -> dict[str, float]:
    """Return the metrics that a node reports. Raises PayloadError for metrics that were not asked for, or are wrong."""
    if not isinstance(report, MetricRecord):
        return {}
    if len(report) > _MOST_METRICS:
        raise PayloadError(f"{len(report)} metrics; a reply may have {_MOST_METRICS} at most")
    metrics = {}
    for name, value in report.items():
        try:
            metrics[name] = checked_metric(name, cast(SupportsFloat, value))
        except ValueError as error:
            raise PayloadError(str(error)) from None
        if asked is None or node not in asked.nodes:
            raise PayloadError(f"metric {name!r} was not asked for in this round")
        if scope_of(name) in asked.server_scopes:
            raise PayloadError(f"metric {name!r} may only be reported by the server")
        if name not in asked.names or not belongs_to(name, asked.action):
            raise PayloadError(f"metric {name!r} was not asked for by {asked.action!r}")
    return metrics

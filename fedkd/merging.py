"""Merging replies block by block, so that a sum of many models costs one, on whatever machine it is taken.

Blocks are runs of `BLOCK` messages in the order of the cohort. They never depend on the number of workers: the same
sums in the same order give the same bytes everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord, RecordDict

from .config import Limits
from .errors import on_one_line
from .payload import REPORT, Expected, Payload, PayloadError, count_bytes, receive, weighted_mean

BLOCK = 5
_MOST_METRICS = 100  # of a reply
_MOST_METRIC = 1e30  # so that means stay finite
_SERVERS = re.compile(r"global(_\d+)?|aggregated|probe|knn|semi_\d+")  # scopes that only the server measures
_METRIC = re.compile(r"[a-z0-9_]{1,60}/[a-z0-9_]{1,60}")

Merge = Callable[[Payload, Payload], Payload]  # folds the second into the first; may change the first alone in place
Expectation = Expected | Mapping[int, Expected] | None  # one for all nodes, or one a node


@dataclass
class Arrival:
    """What became of one request: the reply's payload, or why there is none; its size and the node's metrics."""

    node: int
    payload: Payload | None = None
    failure: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Block:
    """A merged run of replies: their fold (None where all failed), and an Arrival without payload for each."""

    merged: RecordDict | None
    arrivals: list[Arrival]


def arrive(reply: Message, expectation: Expectation, limits: Limits, copy: bool = True) -> Arrival:
    """Check a reply before any strategy sees it; whatever is wrong with it becomes the failure of its node.

    Without `copy`, its arrays may share memory with the reply's, and are to be read.
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
    """Return what a node reports of itself. Raises PayloadError for names that are none, and for what is not finite."""
    if not isinstance(report, MetricRecord):
        return {}
    if len(report) > _MOST_METRICS:
        raise PayloadError(f"{len(report)} metrics, {_MOST_METRICS} at most")
    metrics = {}
    for name, value in report.items():
        if not _METRIC.fullmatch(name):
            raise PayloadError(f"metric {on_one_line(name, 80)!r} is not named scope/metric")
        if isinstance(value, list) or not math.isfinite(value):
            raise PayloadError(f"metric {name!r} is {on_one_line(str(value), 80)}")
        if _SERVERS.fullmatch(name.split("/")[0]):
            raise PayloadError(f"metric {name!r} is the server's to report")
        if not (0 <= value <= 1 if name.endswith("/accuracy") else abs(value) <= _MOST_METRIC):
            raise PayloadError(f"metric {name!r} is {value}, out of range")
        metrics[name] = float(value)
    return metrics


def merge_block(replies: Iterable[Message], merge: Merge, expectation: Expectation, limits: Limits) -> Block:
    """Fold the good replies of one block, holding one at a time."""
    merged: Payload | None = None
    arrivals = []
    for reply in replies:
        # a mean reads the others into the first good one; another merge may keep what it gets
        arrival = arrive(reply, expectation, limits, copy=merged is None or merge is not weighted_mean)
        arrivals.append(arrival)
        payload, arrival.payload = arrival.payload, None
        if payload is not None:
            merged = payload if merged is None else merge(merged, payload)
    return Block(None if merged is None else merged.to_records(copy=False), arrivals)


def blocks_of(messages: list[Message]) -> list[list[Message]]:
    """Return the messages in blocks."""
    return [messages[start : start + BLOCK] for start in range(0, len(messages), BLOCK)]

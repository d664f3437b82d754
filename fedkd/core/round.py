"""`Round`: one round as a method sees it, with `ask` to send requests to its nodes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from ..config import Config
from ..data.portraits import portraits
from ..errors import RunError, TooFewReplies, unknown
from ..messages.arrays import array_record
from ..messages.arrival import Arrival, AskedMetrics, Door, Expectation
from ..messages.carrier import Carrier
from ..messages.ledger import Sizes, add_sizes, count_sent
from ..messages.merging import Merge, blocks_of, weighted_mean
from ..messages.payload import FLOWER_ARRAYS, ROUND, Expected, Payload, from_records
from ..streams import torch_stream
from .environment import Environment
from .log import plain_value
from .record import Captioned, Record

Step = TypeVar("Step")


class Reply(NamedTuple):
    """A reply of a node that has passed the checks."""

    node: int
    payload: Payload


class Round:
    """One round as a method sees it: the cohort, `ask` to send requests to it, the server's streams, and a log.

    `nodes`: all nodes of the federation. `measured`: the nodes whose models are measured at the end of this round;
    empty if the round is not measured. `actions`: the requests that the client half answers. `most_images`: a function
    from a node's number of images to the largest number of images that the node may report to have trained on.
    `server_scopes`: scopes of metrics that the server measures, so that no node may report them; `reports`: the
    metrics that nodes may report. `on_step`: see `each_round`.
    """

    def __init__(
        self,
        environment: Environment,
        carrier: Carrier,
        number: int,
        nodes: Sequence[int],
        cohort: list[int],
        measured: list[int],
        actions: Sequence[str],
        most_images: Callable[[int], int] = lambda images: images,
        server_scopes: set[str] | None = None,
        reports: Sequence[str] = (),
        on_step: Callable[[int, str, int, int], None] = lambda number, what, done, total: None,
    ) -> None:
        self.environment = environment
        self.carrier = carrier
        self.number = number
        self.nodes = nodes
        self.cohort = cohort
        self.measured = measured
        self.server_scopes = server_scopes or set()
        self.record = Record(number, cohort)
        self._actions = actions
        self._reports = frozenset(reports)
        self._most_images = most_images
        self._on_step = on_step
        self._least = environment.config.min_replies  # good replies that a request needs, if it goes to that many nodes
        self._open: _Stream | None = None
        self._overheard: list[Reply] | None = None

    @property
    def config(self) -> Config:
        """Return the run's config."""
        return self.environment.config

    @property
    def due(self) -> bool:
        """Return whether the models are measured at the end of this round."""
        return bool(self.measured)

    def among(self, nodes: list[int]) -> Round:
        """Return this round with another cohort, where one good reply to a request is enough."""
        part = copy.copy(self)
        part.cohort, part._least = nodes, 1
        return part

    def again(self, carrier: Carrier) -> Round:
        """Return this round as it was at its start, with another carrier and a record of its own."""
        new = copy.copy(self)
        new.carrier, new.cohort, new.record = carrier, self.record.cohort, Record(self.number, self.record.cohort)
        return new

    def stream(self, purpose: str) -> torch.Generator:
        """Return the server's stream of this round for a purpose."""
        return torch_stream(self.config.seed, self.number, "server", purpose)

    def log(self, name: str, value: Any) -> None:
        """Write a value into this round's line of metrics.jsonl, under `log`.

        `value`: a finite number, a text, or lists and tables of them; tensors and arrays become lists. Raises RunError,
        which names the calling line, for any other value.
        """
        self.record.log[name] = plain_value(name, value)

    def show(self, name: str, samples: np.ndarray, captions: Sequence[str]) -> None:
        """Keep pictures of raw samples, N x ..., for the run's `figures/`, if this round is measured."""
        if self.due:
            self.record.images[name] = Captioned(portraits(self.environment.data.spec, samples), tuple(captions))

    def track(self, what: str, steps: Sequence[Step]) -> Iterator[Step]:
        """Yield the steps of long work on the server, and report the number of finished steps as progress."""
        for done, step in enumerate(steps):
            self._on_step(self.number, what, done, len(steps))
            yield step
        self._on_step(self.number, what, len(steps), len(steps))

    @contextmanager
    def overheard(self) -> Iterator[list[Reply]]:
        """Give a wrapper copies of all good replies that its base strategy gets inside the `with` block.

        The base's result does not change: replies that workers would merge are merged here, in the same blocks.
        """
        overheard: list[Reply] = []
        self._overheard = overheard
        try:
            yield overheard
        finally:
            self._finish_open()
            self._overheard = None

    @overload
    def ask(
        self, action: str, payload: Payload | Mapping[int, Payload] | None = ..., *, expect: Expectation = ...
    ) -> list[Reply]: ...

    @overload
    def ask(
        self,
        action: str,
        payload: Payload | Mapping[int, Payload] | None = ...,
        *,
        expect: Expectation = ...,
        stream: Literal[True],
    ) -> Iterator[Reply]: ...

    @overload
    def ask(
        self,
        action: str,
        payload: Payload | Mapping[int, Payload] | None = ...,
        *,
        expect: Expectation = ...,
        merge: Merge,
    ) -> Payload: ...

    def ask(
        self,
        action: str,
        payload: Payload | Mapping[int, Payload] | None = None,
        *,
        expect: Expectation = None,
        stream: bool = False,
        merge: Merge | None = None,
    ) -> list[Reply] | Iterator[Reply] | Payload:
        """Send the request `action` to the cohort, or to the nodes that `payload` names, each with its own payload.

        Returns the good replies, in node order, independent of the order of their arrival. With `merge` (such as
        `weighted_mean`) it returns one payload, merged from all of them. With `stream` it returns an iterator, which
        has one reply in memory at a time. If it is not finished at the next request, its other replies are read then
        and kept.

        `expect` describes what each reply must contain. A reply that reports an error, or does not match `expect`, is
        recorded as a failure of its node. Raises RunError if the client half has no such action, or if fewer than
        `min_replies` replies are good. With `stream`, the second error comes after the last reply.
        """
        if action not in self._actions:
            raise RunError(str(unknown(f"ask({action!r})", action, self._actions)))
        self._finish_open()
        messages = self._messages(action, payload if payload is not None else Payload(), self.cohort)
        expect = self._bounded(expect, messages)
        required = min(self._least, len(messages))
        if merge is not None:
            return self._merged(action, messages, expect, merge, required)
        replies = self._replies(action, messages, expect, self.record.bytes, required)
        if not stream:
            return list(replies)
        self._open = _Stream(replies)
        return self._open

    def exchange(self, messages: Iterable[Message], expect: Expectation = None) -> list[Message]:
        """Send complete Flower messages; return the good replies as messages, in node order, checked like any reply.

        For Flower's own strategies, which write and read their messages themselves. They get only the content that was
        checked.
        """
        self._finish_open()
        messages = list(messages)
        expect = self._bounded(expect, messages)
        about_round = ConfigRecord({"measured": self.measured})
        sent = [
            Message(
                RecordDict({**message.content, ROUND: about_round}),
                message.metadata.dst_node_id,
                message.metadata.message_type,
                group_id=str(self.number),
            )
            for message in sorted(messages, key=lambda m: m.metadata.dst_node_id)
        ]
        good: list[Message] = []
        for reply in self._send(sent, self.record.bytes):
            arrival = self._door("train", expect).let_in(reply)
            self._note("train", arrival, self.record.bytes)
            if arrival.payload is not None:
                self._overhear(arrival.node, arrival.payload)
                one = expect.get(arrival.node) if isinstance(expect, Mapping) else expect
                reply.content = _flower_records(arrival.payload, one)
                good.append(reply)
        self._need("train", len(sent), len(good), min(self._least, len(sent)))
        return good

    def measure(self, payload: Payload | Mapping[int, Payload]) -> Callable[[], None]:
        """Ask the measured nodes for the metrics of their models, or of the payload's model.

        These bytes are not counted as the method's traffic. Returns a function that waits for the metrics, so that the
        server can measure its own models while the workers run.
        """
        self._finish_open()
        messages = self._messages("evaluate", payload, self.measured)
        self._open = _Stream(self._replies("evaluate", messages, Expected(), self.record.evaluation_bytes, 0))
        return self._finish_open

    def ask_measured(
        self, action: str, payload: Payload | None = None, *, expect: Expectation = None
    ) -> Iterator[Reply]:
        """Ask the measured nodes for what only a measurement needs; return an iterator, as `ask` does with `stream`.

        These bytes are not counted as the method's traffic. Raises RunError as `ask` does.
        """
        if action not in self._actions:
            raise RunError(str(unknown(f"ask_measured({action!r})", action, self._actions)))
        self._finish_open()
        messages = self._messages(action, payload if payload is not None else Payload(), self.measured)
        traffic, required = self.record.evaluation_bytes, min(self._least, len(messages))
        self._open = _Stream(self._replies(action, messages, self._bounded(expect, messages), traffic, required))
        return self._open

    def close(self) -> None:
        """Finish a request whose replies the method has not read."""
        self._finish_open()

    def _finish_open(self) -> None:
        if self._open is not None:
            self._open.keep_all()
            self._open = None

    def _messages(self, action: str, payload: Payload | Mapping[int, Payload], nodes: list[int]) -> list[Message]:
        about_round = ConfigRecord({"measured": self.measured})

        def content(one: Payload) -> RecordDict:
            return RecordDict({**one.to_records(), ROUND: about_round})

        if isinstance(payload, Payload):
            shared = content(payload)  # one object for all nodes, so that an engine stores it once
            contents = dict.fromkeys(nodes, shared)
        else:
            records: dict[int, RecordDict] = {}  # nodes that share a payload share its records
            contents = {}
            for node in sorted(payload):
                one = payload[node]
                contents[node] = records[id(one)] = records.get(id(one)) or content(one)
        kind, group = f"train.{action}", str(self.number)
        return [Message(records, node, kind, group_id=group) for node, records in contents.items()]

    def _replies(
        self, action: str, messages: list[Message], expect: Expectation, traffic: Sizes, required: int
    ) -> Iterator[Reply]:
        """Send immediately; yield the good replies. Raises RunError after the last one if there are too few."""
        arriving = self._send(messages, traffic)

        def good_ones() -> Iterator[Reply]:
            good = 0
            for reply in arriving:
                arrival = self._door(action, expect).let_in(reply)
                self._note(action, arrival, traffic)
                if arrival.payload is not None:
                    good += 1
                    if traffic is self.record.bytes:
                        self._overhear(arrival.node, arrival.payload)
                    yield Reply(arrival.node, arrival.payload)
            self._need(action, len(messages), good, required)

        return good_ones()

    def _merged(
        self, action: str, messages: list[Message], expect: Expectation, merge: Merge, required: int
    ) -> Payload:
        if self._overheard is not None:
            return self._merged_here(action, messages, expect, merge, max(required, 1))
        count_sent(messages, self.record.bytes)
        door = self._door(action, expect)
        blocks = self.carrier.exchange_merged(blocks_of(messages), merge, door, self.config.timeout)
        total: Payload | None = None
        good = 0
        for block in blocks:
            for arrival in block.arrivals:
                self._note(action, arrival, self.record.bytes)
                good += arrival.failure is None
            if block.merged is not None:
                part = from_records(block.merged, copy=total is None or merge is not weighted_mean)
                total = part if total is None else merge(total, part)
        self._need(action, len(messages), good, max(required, 1))
        assert total is not None
        return total

    def _merged_here(
        self, action: str, messages: list[Message], expect: Expectation, merge: Merge, required: int
    ) -> Payload:
        """Merge as `_merged` does, but in this process, which gets each reply."""
        block_of = {m.metadata.dst_node_id: number for number, part in enumerate(blocks_of(messages)) for m in part}
        blocks: dict[int, Payload] = {}
        for node, payload in self._replies(action, messages, expect, self.record.bytes, required):
            block = block_of[node]
            blocks[block] = merge(blocks[block], payload) if block in blocks else payload
        return reduce(merge, blocks.values())

    def _overhear(self, node: int, payload: Payload) -> None:
        if self._overheard is not None:
            self._overheard.append(Reply(node, copy.deepcopy(payload)))  # a merge may change its arguments

    def _bounded(self, expect: Expectation, messages: list[Message]) -> Expectation:
        """Return one expectation for each node, with the largest number of images that it can have, if known."""
        nodes = [message.metadata.dst_node_id for message in messages]
        known = {node: images for node in nodes if (images := self.carrier.images_of(node)) is not None}
        if expect is None or not known:
            return expect
        bounded = dict(expect) if isinstance(expect, Mapping) else dict.fromkeys(nodes, expect)
        for node, images in known.items():
            if node in bounded:
                bounded[node] = dataclasses.replace(bounded[node], most_images=self._most_images(images))
        return bounded

    def _door(self, action: str, expect: Expectation) -> Door:
        """Return the check of the replies to a request, with the metrics that it asks for."""
        asked = AskedMetrics(action, frozenset(self.measured), self._reports, frozenset(self.server_scopes))
        return Door(expect, self.config.limits, asked)

    def _send(self, messages: list[Message], traffic: Sizes) -> Iterator[Message]:
        """Send messages; return the replies in the same order, with an error reply for each that is not in time."""
        count_sent(messages, traffic)
        return self.carrier.exchange(messages, self.config.timeout)

    def _note(self, action: str, arrival: Arrival, traffic: Sizes) -> None:
        self.carrier.settle(arrival.node, arrival.failure is None)
        add_sizes(traffic["up"], arrival.sizes)
        for metric, value in arrival.metrics.items():
            self.record.nodes.setdefault(metric, {})[arrival.node] = value
        if arrival.failure is not None:
            self.record.failures.append({"node": arrival.node, "action": action, "reason": arrival.failure})

    def _need(self, action: str, asked: int, good: int, required: int) -> None:
        if good < required:
            failures = [f for f in self.record.failures if f["action"] == action]
            reasons = "; ".join(f"node {f['node']}: {f['reason']}" for f in failures[:3])
            raise TooFewReplies(
                f"Round {self.number}, request {action!r}: {good} of {asked} replies are good, min_replies is "
                f"{required}. {reasons}{' ...' if len(failures) > 3 else ''}"
            )


class _Stream(Iterator[Reply]):
    """Replies that are read one at a time, or all together when the next request begins."""

    def __init__(self, replies: Iterator[Reply]) -> None:
        self._arriving = replies
        self._kept: list[Reply] = []

    def __next__(self) -> Reply:
        return self._kept.pop(0) if self._kept else next(self._arriving)

    def keep_all(self) -> None:
        self._kept += self._arriving


def _flower_records(payload: Payload, expected: Expected | None) -> RecordDict:
    """Return a checked payload under Flower's own names, with its weights in the expected order."""
    order = payload.weights if expected is None else expected.weights
    weights = {name: payload.weights[name] for name in order}
    return RecordDict({FLOWER_ARRAYS: array_record(weights), "metrics": MetricRecord(dict(payload.numbers))})

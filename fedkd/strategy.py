"""The server half of a strategy: `Strategy`, whose `start` is the loop of the core, and `Round`, what it acts on."""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, overload

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerBase

from .client import Client
from .config import Architecture, Config
from .errors import RunError
from .grid import Carrier
from .merging import Arrival, Expectation, Merge, arrive, blocks_of
from .payload import (
    FLOWER_ARRAYS,
    ROUND,
    Expected,
    Payload,
    Tensors,
    array_record,
    count_bytes,
    from_records,
    tensors_of,
    weighted_mean,
)
from .sites import Roster, Sites
from .streams import default_stream, numpy_stream, torch_stream

if TYPE_CHECKING:
    from .environment import Environment

_LISTED = 10_000  # nodes that a line of metrics.jsonl may name
_MEASURED = 100  # nodes, where the config does not say how many
Step = TypeVar("Step")
Sizes = dict[str, dict[str, int]]  # "up" and "down": bytes by kind


class Reply(NamedTuple):
    """A node's good reply to a request."""

    node: int
    payload: Payload


class Captioned(NamedTuple):
    """A row of images, uint8, N x channels x H x W, and a word on each."""

    images: np.ndarray
    captions: tuple[str, ...]


def _no_bytes() -> Sizes:
    return {"up": {}, "down": {}}


@dataclass
class Record:
    """What a round leaves behind: a line of metrics.jsonl. Round 0 is the strategy's preparation."""

    number: int
    cohort: list[int]
    metrics: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, dict[int, float]] = field(default_factory=dict)
    bytes: Sizes = field(default_factory=_no_bytes)
    evaluation_bytes: Sizes = field(default_factory=_no_bytes)
    failures: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Captioned] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Server:
    """What a strategy's loop needs besides the grid: the environment, and who wants to hear of each round.

    `on_round` gets the Record of each round, `on_checkpoint` the number of a round whose state is to be kept, `on_step`
    how far long work on the server is: the round, what it is, steps done, steps in all; `on_event`, at once, what
    happens to real sites. `first_round` is 0 for a new run, and the round after the checkpoint for one that continues.
    `roster`: the real sites that the federation has met; its own for each run unless given.
    """

    environment: Environment
    on_round: Callable[[Record], None] = lambda record: None
    on_checkpoint: Callable[[int], None] = lambda number: None
    on_step: Callable[[int, str, int, int], None] = lambda number, what, done, total: None
    on_event: Callable[[str], None] = lambda text: None
    first_round: int = 0
    roster: Roster = field(default_factory=Roster)


class Replies(Iterable[Reply]):
    """The good replies to one request, in node order; held one at a time where the engine can stream."""

    def __init__(self, replies: Iterator[Reply]) -> None:
        self._replies = replies
        self._kept: list[Reply] = []

    def __iter__(self) -> Iterator[Reply]:
        while self._kept:
            yield self._kept.pop(0)
        yield from self._replies

    def keep(self) -> None:
        """Let all clients run to the end, and keep their replies for whoever reads them later."""
        self._kept += self._replies

    def drop(self) -> None:
        """Let all clients run to the end; nobody will read the replies."""
        for _ in self:
            pass


class Round:
    """One round as a method sees it: the cohort, `ask` to reach its nodes, the server's streams, and a log.

    `nodes`: all nodes of the federation. `due`: whether the models are measured at the end of this round.
    """

    def __init__(
        self,
        server: Server,
        grid: Grid,
        carrier: Carrier,
        number: int,
        nodes: Sequence[int],
        cohort: list[int],
        measured: list[int],
    ) -> None:
        self.environment = server.environment
        self.grid = grid
        self.carrier = carrier
        self.number = number
        self.nodes = nodes
        self.cohort = cohort
        self.due = bool(measured)
        self.record = Record(number, cohort)
        self._on_step = server.on_step
        self._measured = measured
        self._open: Replies | None = None
        self._measuring: Replies | None = None
        self._heard: list[Reply] | None = None

    @property
    def config(self) -> Config:
        """Return the run's config."""
        return self.environment.config

    def stream(self, purpose: str) -> torch.Generator:
        """Return the server's stream of this round for a purpose."""
        return torch_stream(self.config.seed, self.number, "server", purpose)

    def log(self, name: str, value: Any) -> None:
        """Write a number, list or table into this round's line of metrics.jsonl."""
        self.record.log[name] = value

    def show(self, name: str, images: np.ndarray, captions: Sequence[str]) -> None:
        """Keep a row of images (uint8, N x channels x H x W) for the run's `figures/`, where this round is measured."""
        if self.due:
            self.record.images[name] = Captioned(images, tuple(captions))

    def track(self, what: str, steps: Sequence[Step]) -> Iterator[Step]:
        """Yield the steps of long work on the server, and tell whoever watches the run how many are done."""
        for done, step in enumerate(steps):
            self._on_step(self.number, what, done, len(steps))
            yield step
        self._on_step(self.number, what, len(steps), len(steps))

    @contextmanager
    def overheard(self) -> Iterator[list[Reply]]:
        """Let a wrapper see what a base strategy gets: all good replies to its requests inside the block, as copies.

        The base's result does not change: replies that it would merge on workers are merged here, by the same blocks.
        """
        heard: list[Reply] = []
        self._heard = heard
        try:
            yield heard
        finally:
            self._finish_open()
            self._heard = None

    @overload
    def ask(
        self, action: str, payload: Payload | Mapping[int, Payload] | None = ..., *, expect: Expectation = ...
    ) -> Replies: ...

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
        merge: Merge | None = None,
    ) -> Replies | Payload:
        """Send the request `action` to the cohort, or to the nodes that `payload` names, each with its own payload.

        Returns the good replies, in node order whatever order they arrive in; or, with `merge` (such as
        `weighted_mean`), their fold as one payload. `expect` is what each reply must hold. A reply that fails, or does
        not hold it, is recorded as that node's failure. Raises RunError where fewer than `min_replies` are good, with
        `merge` at once, else after the last reply.
        """
        self._finish_open()
        messages = self._messages(action, payload if payload is not None else Payload(), self.cohort)
        expect = self._bounded(expect, messages)
        required = min(self.config.min_replies, len(messages))
        if merge is not None:
            return self._merged(action, messages, expect, merge, required)
        self._open = Replies(self._stream(action, messages, expect, self.record.bytes, required))
        return self._open

    def exchange(self, messages: Iterable[Message], expect: Expectation = None) -> list[Message]:
        """Send ready-made Flower messages; return the good replies as messages, in node order, checked like any reply.

        For Flower's own strategies, which write and read their messages themselves. They get what was checked, and
        nothing else that a reply may bring.
        """
        self._finish_open()
        messages = list(messages)
        expect = self._bounded(expect, messages)
        told = ConfigRecord({"measured": self._measured})
        sent = [
            Message(
                RecordDict({**message.content, ROUND: told}),
                message.metadata.dst_node_id,
                message.metadata.message_type,
                group_id=str(self.number),
            )
            for message in sorted(messages, key=lambda m: m.metadata.dst_node_id)
        ]
        good: list[Message] = []
        for reply in self._send(sent, self.record.bytes):
            arrival = arrive(reply, expect, self.config.limits)
            self._note("train", arrival, self.record.bytes)
            if arrival.payload is not None:
                self._hear(arrival.node, arrival.payload)
                one = expect.get(arrival.node) if isinstance(expect, Mapping) else expect
                reply.content = _flower_records(arrival.payload, one)
                good.append(reply)
        self._enough("train", len(sent), len(good), min(self.config.min_replies, len(sent)))
        return good

    def measure(self, nodes: list[int], payload: Payload | Mapping[int, Payload]) -> Callable[[], None]:
        """Ask nodes for the metrics of their models, or of what the payload holds. Not the method's traffic.

        Returns what waits for them: the server can measure its own models while workers are at theirs.
        """
        self._finish_open()
        messages = self._messages("evaluate", payload, nodes)
        self._measuring = Replies(self._stream("evaluate", messages, None, self.record.evaluation_bytes, 0))
        return self._measuring.drop

    def close(self) -> None:
        """Let a request whose replies the method did not read run to its end."""
        if self._open is not None:
            self._open.drop()
            self._open = None

    def _finish_open(self) -> None:
        for replies in (self._open, self._measuring):
            if replies is not None:
                replies.keep()

    def _messages(self, action: str, payload: Payload | Mapping[int, Payload], nodes: list[int]) -> list[Message]:
        told = ConfigRecord({"measured": self._measured})

        def content(one: Payload) -> RecordDict:
            return RecordDict({**one.to_records(), ROUND: told})

        if isinstance(payload, Payload):
            shared = content(payload)  # one object for all: an engine stores it once
            contents = dict.fromkeys(nodes, shared)
        else:
            records: dict[int, RecordDict] = {}  # nodes that share a payload share its records
            contents = {}
            for node in sorted(payload):
                one = payload[node]
                contents[node] = records[id(one)] = records.get(id(one)) or content(one)
        kind, group = f"train.{action}", str(self.number)
        return [Message(records, node, kind, group_id=group) for node, records in contents.items()]

    def _stream(
        self, action: str, messages: list[Message], expect: Expectation, traffic: Sizes, required: int
    ) -> Iterator[Reply]:
        replies = self._send(messages, traffic)

        def good_ones() -> Iterator[Reply]:
            good = 0
            for reply in replies:
                arrival = arrive(reply, expect, self.config.limits)
                self._note(action, arrival, traffic)
                if arrival.payload is not None:
                    good += 1
                    self._hear(arrival.node, arrival.payload)
                    yield Reply(arrival.node, arrival.payload)
            self._enough(action, len(messages), good, required)

        return good_ones()

    def _merged(
        self, action: str, messages: list[Message], expect: Expectation, merge: Merge, required: int
    ) -> Payload:
        if self._heard is not None:
            return self._merged_here(action, messages, expect, merge, max(required, 1))
        _count_sent(messages, self.record.bytes)
        limits, timeout = self.config.limits, self.config.timeout
        blocks = self.carrier.exchange_merged(blocks_of(messages), merge, expect, limits, timeout)
        total: Payload | None = None
        good = 0
        for block in blocks:
            for arrival in block.arrivals:
                self._note(action, arrival, self.record.bytes)
                good += arrival.failure is None
            if block.merged is not None:
                part = from_records(block.merged, copy=total is None or merge is not weighted_mean)
                total = part if total is None else merge(total, part)
        self._enough(action, len(messages), good, max(required, 1))
        assert total is not None
        return total

    def _merged_here(
        self, action: str, messages: list[Message], expect: Expectation, merge: Merge, required: int
    ) -> Payload:
        """Merge as `_merged` does, with each reply passing through this process."""
        block_of = {m.metadata.dst_node_id: number for number, part in enumerate(blocks_of(messages)) for m in part}
        blocks: dict[int, Payload] = {}
        for node, payload in self._stream(action, messages, expect, self.record.bytes, required):
            block = block_of[node]
            blocks[block] = merge(blocks[block], payload) if block in blocks else payload
        return reduce(merge, blocks.values())

    def _hear(self, node: int, payload: Payload) -> None:
        if self._heard is not None:
            self._heard.append(Reply(node, copy.deepcopy(payload)))  # a merge may change what it gets

    def _bounded(self, expect: Expectation, messages: list[Message]) -> Expectation:
        """Return the expectation, one a node, with how many images each node can have, where that is known."""
        nodes = [message.metadata.dst_node_id for message in messages]
        known = {node: images for node in nodes if (images := self.carrier.images_of(node)) is not None}
        if expect is None or not known:
            return expect
        bounded = dict(expect) if isinstance(expect, Mapping) else dict.fromkeys(nodes, expect)
        for node, images in known.items():
            if node in bounded:
                most = self.environment.strategy.most_images(images, self.environment)
                bounded[node] = dataclasses.replace(bounded[node], most_images=most)
        return bounded

    def _send(self, messages: list[Message], traffic: Sizes) -> Iterator[Message]:
        """Send messages; return their replies in the same order, an error reply for each that does not come in time."""
        _count_sent(messages, traffic)
        return self.carrier.exchange(messages, self.config.timeout)

    def _note(self, action: str, arrival: Arrival, traffic: Sizes) -> None:
        _add(traffic["up"], arrival.sizes)
        for metric, value in arrival.metrics.items():
            self.record.nodes.setdefault(metric, {})[arrival.node] = value
        if arrival.failure is not None:
            self.record.failures.append({"node": arrival.node, "action": action, "reason": arrival.failure})

    def _enough(self, action: str, asked: int, good: int, required: int) -> None:
        if good < required:
            failures = [f for f in self.record.failures if f["action"] == action]
            told = "; ".join(f"node {f['node']}: {f['reason']}" for f in failures[:3])
            raise RunError(
                f"Round {self.number}, request {action!r}: {good} of {asked} replies are good, min_replies is "
                f"{required}. {told}{' ...' if len(failures) > 3 else ''}"
            )


def _flower_records(payload: Payload, expected: Expected | None) -> RecordDict:
    """Return a checked payload under Flower's own names, its weights in the order in which they were asked for."""
    order = payload.weights if expected is None else expected.weights
    weights = {name: payload.weights[name] for name in order}
    return RecordDict({FLOWER_ARRAYS: array_record(weights), "metrics": MetricRecord(dict(payload.numbers))})


def _count_sent(messages: list[Message], traffic: Sizes) -> None:
    sizes: dict[int, dict[str, int]] = {}
    for message in messages:
        content = message.content
        if id(content) not in sizes:
            sizes[id(content)] = count_bytes(content)
        _add(traffic["down"], sizes[id(content)])


def _add(total: dict[str, int], sizes: dict[str, int]) -> None:
    for kind, size in sizes.items():
        total[kind] = total.get(kind, 0) + size


class Strategy(FlowerBase):
    """The server half of a method. Write `run_round`; where needed `prepare`, `check`, `state` and `restore`.

    A subclass is a keyword-only dataclass: its fields are the method's hyper-parameters, the keys of `[strategy]` in a
    config, checked by their annotations. Nodes make the same object, so a client reads them as `self.strategy.<name>`.
    """

    client: ClassVar[type[Client]] = Client
    equal_models: ClassVar[bool] = False  # whether all nodes must have one architecture
    global_model: ClassVar[bool] = False  # whether the server holds a model; it starts from the run's fresh weights
    classifies: ClassVar[bool] = True  # whether the global model is a classifier, one of the run's architecture
    listed_models: ClassVar[bool] = False  # whether the server needs to know each node's architecture
    pooled: ClassVar[bool] = False  # whether the server needs the nodes' images, which only a simulation has
    weights: Tensors | None = None  # the global model; None for a method that has none

    @property
    def innermost(self) -> Strategy:
        """Return the strategy whose hyper-parameters the client half reads: this one, unless it wraps another."""
        return self

    def client_class(self) -> type[Client]:
        """Return the client half: `client`, unless it depends on more than the class."""
        return self.client

    def check(self, environment: Environment) -> None:
        """Raise InputError where the method cannot run with this config and data. Called before anything runs."""

    def prepare(self, federation: Round) -> None:
        """Do what comes before round 1, such as pre-training; the cohort is all nodes."""

    @abstractmethod
    def run_round(self, federation: Round) -> None:
        """Run one round: the method itself."""

    def evaluation(self, nodes: list[int]) -> Payload | dict[int, Payload]:
        """Return what nodes need to measure themselves at the end of a round. By default the global model."""
        return Payload(weights=self.weights or {})

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the server's models, which are measured on the global test set. By default `weights`, if any.

        Of several, `global/accuracy` and `global/loss` are the means, and each has its own under `global_<number>`.
        """
        return [(0, self.weights)] if self.weights else []

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return models on the way to the global one that are measured too, by the scope of their metrics.

        A wrapper's base model before it was refined, as `aggregated`, gives `aggregated/accuracy`.
        """
        return {}

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the metrics that the server measures: by default of its models on the global test set, if any."""
        environment = federation.environment
        if not len(environment.data.test.labels):
            return {}
        metrics = _global_metrics(self.global_models(), environment)
        for scope, (architecture, weights) in self.stages().items():
            scores = environment.score(architecture, weights, environment.data.test)
            metrics |= {f"{scope}/{name}": value for name, value in scores.items()}
        return metrics

    def initial_weights(self, environment: Environment) -> Tensors:
        """Return the global model to start from: by default fresh weights of the run's architecture."""
        return environment.initial_weights()

    def state(self) -> Tensors:
        """Return what the server must keep to continue after a restart. By default the global model."""
        return dict(self.weights or {})

    def restore(self, state: Tensors) -> None:
        """Take back what `state` returned."""
        self.weights = dict(state) or None

    def most_images(self, images: int, environment: Environment) -> int:
        """Return how many images a node with so many of its own may say that it trained on."""
        return images

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        server: Server | None = None,
    ) -> Result:
        """Run the rounds: Flower's `start`, with the core's loop.

        `initial_arrays`: the global model to start from; empty for fresh weights of the run's seed. `evaluate_fn` gets
        the global model of rounds that are evaluated, beside the core's own evaluation, and fills the result's
        `evaluate_metrics_serverapp`. Timeouts and client settings come from the run's config.
        """
        if server is None:
            raise TypeError("A fedkd strategy is started by fedkd.run.make_server_app, which tells it of its Server.")
        environment, config = server.environment, server.environment.config
        result = Result()
        if initial_arrays:
            self.weights = tensors_of(initial_arrays)
        elif self.global_model and self.weights is None:
            self.weights = self.initial_weights(environment)
        carrier = grid if isinstance(grid, Carrier) else Sites(grid, server)
        for number in range(server.first_round, num_rounds + 1):
            due = number % config.evaluate.every == 0 or number == num_rounds
            begin = time.perf_counter()
            nodes = carrier.nodes()
            cohort = _draw(nodes, config.cohort, config.seed, number, "cohort") if number else self._prepared(nodes)
            fraction = config.evaluate.fraction
            share = _MEASURED if fraction is None else max(1, round(fraction * len(nodes)))
            measured = _draw(nodes, share, config.seed, number, "evaluate") if due else []
            federation = Round(server, grid, carrier, number, nodes, cohort, measured)
            with default_stream(federation.stream("default")):
                (self.run_round if number else self.prepare)(federation)
                federation.close()
            trained = time.perf_counter()
            if due:
                wait_for_nodes = federation.measure(measured, self.evaluation(measured))
                federation.record.metrics.update(self.measure(federation))
                wait_for_nodes()
                if evaluate_fn is not None and self.global_models():
                    metrics = evaluate_fn(number, array_record(self.global_models()[0][1]))
                    if metrics is not None:
                        result.evaluate_metrics_serverapp[number] = metrics
            record = federation.record
            record.events = carrier.events()
            for metric, values in record.nodes.items():
                if metric in record.metrics:  # the server's own; no node may speak over it
                    continue
                record.metrics[metric] = sum(values[node] for node in sorted(values)) / len(values)
            record.seconds = {"round": trained - begin, "evaluation": time.perf_counter() - trained}
            server.on_round(record)
            if number % config.checkpoint.every == 0 or number == num_rounds:
                server.on_checkpoint(number)
        result.arrays = array_record(self.global_models()[0][1] if self.global_models() else {})
        return result

    def _prepared(self, nodes: Sequence[int]) -> list[int]:
        """Return whom `prepare` can ask: all nodes; of very many nobody, where the method has nothing to prepare."""
        return [] if len(nodes) > _LISTED and type(self).prepare is Strategy.prepare else list(nodes)

    def summary(self) -> None:
        """Log nothing: the run folder's config.toml says it all."""

    # Flower's phases, which the core's loop does not use

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse: a fedkd strategy runs its rounds in `run_round`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse, like `configure_train`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse, like `configure_train`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Refuse, like `configure_train`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")


def _global_metrics(models: list[tuple[Architecture, Tensors]], environment: Environment) -> dict[str, float]:
    scores = [environment.score(architecture, weights, environment.data.test) for architecture, weights in models]
    found = {f"global/{name}": sum(s[name] for s in scores) / len(scores) for name in (scores[0] if scores else ())}
    if len(scores) > 1:
        found |= {f"global_{i}/{name}": value for i, score in enumerate(scores) for name, value in score.items()}
    return found


def _draw(nodes: Sequence[int], count: int | None, seed: int, number: int, purpose: str) -> list[int]:
    if count is None or count >= len(nodes):
        return list(nodes)
    rng = numpy_stream(seed, number, "server", purpose)
    return sorted(nodes[i] for i in rng.choice(len(nodes), count, replace=False))

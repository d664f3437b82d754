"""The Ray engine: clients on actors, over the cores and GPUs of one machine or a cluster.

A worker is made once a run. It reads the federation's data from shared memory and keeps its model objects. A request's
content is stored once, however many nodes get it. A node's state goes from worker to worker through the object store;
the driver holds its reference. A worker that dies is replaced, and its clients run again from the same message and
state, with the same result.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU leave CUDA's variable alone

import ray
from flwr.app import Message, RecordDict
from pydantic import Field

from fedkd.client import make_client_app
from fedkd.config import Config, Limits
from fedkd.environment import Device, Environment, Threads, prepare_process
from fedkd.errors import InputError
from fedkd.flower import error_reply, without_content
from fedkd.grid import SimulationGrid
from fedkd.merging import Block, Expectation, Merge, merge_block

from .node import call_node

Workers = Literal["auto"] | Annotated[int, Field(ge=1)]
_TRIES = 3  # how often clients run again whose worker died, before that is their failure
_QUEUED = 2  # calls a worker has at most, so that it never waits for the driver


class _Worker:
    """Runs the clients of messages in a process of its own."""

    def __init__(self, config: Config, data: Any, threads: int, device: Device, gpu: bool) -> None:
        self.environment = Environment(config, data, prepare_process(threads, device, gpu))
        self.app = make_client_app(self.environment.strategy, lambda: self.environment)

    def ready(self) -> bool:
        return True

    def call(self, message: Message, content: RecordDict, state: RecordDict | None) -> tuple[Message, RecordDict]:
        message.content = content
        return call_node(self.environment, self.app, message, state or RecordDict())

    def call_block(
        self,
        messages: list[Message],
        numbers: list[int],
        merge: Merge,
        expectation: Expectation,
        limits: Limits,
        *contents_and_states: Any,
    ) -> tuple[Any, ...]:
        """Run a block of clients and fold their replies. `numbers[i]` is the content of message i.

        After the contents come the states, one a message.
        """
        count = len(contents_and_states) - len(messages)
        contents, before = contents_and_states[:count], contents_and_states[count:]
        states: list[RecordDict] = []

        def replies() -> Iterator[Message]:
            for message, number, state in zip(messages, numbers, before, strict=True):
                reply, after = self.call(message, contents[number], state)
                states.append(after)
                yield reply

        block = merge_block(replies(), merge, expectation, limits)
        return (block, *states)


class RayGrid(SimulationGrid):
    """Clients run on Ray actors, as many at a time as there are workers."""

    def __init__(
        self,
        environment: Environment,
        *,
        workers: Workers = "auto",
        cpus_per_worker: Annotated[float, Field(ge=0)] = 1.0,
        gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0,
        address: str | None = None,
        threads: Threads = 1,
        device: Device = "auto",
    ) -> None:
        """Start the workers, on the cluster at `address`, or on one of this machine that ends with the engine.

        `workers = "auto"`: as many as the cluster's CPUs and GPUs hold, and no more than a round has nodes.
        `device = "auto"`: a GPU where workers have shares of one, for the server's own work too. Raises InputError for
        an address without a cluster and for more workers than fit.
        """
        super().__init__(environment)
        self._started = not ray.is_initialized()
        if self._started:
            connect(address)
        self._actors: list[Any] = []
        try:
            cohort = environment.config.cohort or environment.data.clients
            count = count_workers(workers, cpus_per_worker, gpus_per_worker, ray.cluster_resources(), cohort)
            self._data = ray.put(environment.data)  # held as long as a worker may have to start again
            # the engine restarts workers itself: it knows which client was running when one died
            worker = ray.remote(_Worker).options(num_cpus=cpus_per_worker, num_gpus=gpus_per_worker)
            arguments = (environment.config, self._data, threads, device, gpus_per_worker > 0)
            self._new_worker: Callable[[], Any] = lambda: worker.remote(*arguments)
            self._actors = [self._new_worker() for _ in range(count)]
            ray.get([actor.ready.remote() for actor in self._actors])
        except BaseException:
            self.close()
            raise
        environment.use_device(prepare_process(threads, device, gpu=gpus_per_worker > 0))
        self._states: dict[int, Any] = {}

    def carry(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run each client on the next free worker."""
        contents = _Contents()
        queue: list[_Call] = []
        for message in messages:
            content, shell = contents.put(message), without_content(message)

            def start(actor: Any, shell: Message = shell, content: Any = content) -> list[Any]:
                state = self._states.get(shell.metadata.dst_node_id)
                refs: list[Any] = actor.call.options(num_returns=2).remote(shell, content, state)
                return refs

            queue.append(_Call(start, [message]))
        for call, reply in self._in_order(queue, timeout):
            yield reply if isinstance(reply, Message) else error_reply(call.messages[0], reply)

    def carry_merged(
        self, blocks: list[list[Message]], merge: Merge, expectation: Expectation, limits: Limits, timeout: float | None
    ) -> Iterator[Block]:
        """Run each block of clients on the next free worker, which folds their replies.

        With a timeout each client runs by itself, and the driver folds, so that one late node does not cost its block.
        """
        if timeout is not None:
            yield from super().carry_merged(blocks, merge, expectation, limits, timeout)
            return
        contents = _Contents()
        queue: list[_Call] = []
        for block in blocks:
            refs = [contents.put(message) for message in block]
            unique = list({id(ref): ref for ref in refs}.values())
            numbers = [next(i for i, u in enumerate(unique) if u is ref) for ref in refs]
            shells = [without_content(message) for message in block]

            def start(
                actor: Any, shells: list[Message] = shells, numbers: list[int] = numbers, unique: list[Any] = unique
            ) -> list[Any]:
                states = [self._states.get(shell.metadata.dst_node_id) for shell in shells]
                method = actor.call_block.options(num_returns=1 + len(shells))
                returned: list[Any] = method.remote(shells, numbers, merge, expectation, limits, *unique, *states)
                return returned

            queue.append(_Call(start, block))
        for call, result in self._in_order(queue, timeout):
            if isinstance(result, Block):
                yield result
            else:  # one of its clients ended the process: find out which, and let the others count
                yield merge_block(self.carry(call.messages, None), merge, expectation, limits)

    def _in_order(self, calls: list[_Call], timeout: float | None) -> Iterator[tuple[_Call, Any]]:
        """Keep the workers busy; yield each call with its result, or with the reason why there is none, in order."""
        waiting = deque(calls)
        running: dict[Any, tuple[_Call, list[Any], int]] = {}  # in the order in which they were started
        load = [0] * len(self._actors)
        done: dict[int, Any] = {}
        order = {id(call): number for number, call in enumerate(calls)}
        deadline = None if timeout is None else time.monotonic() + timeout
        following = 0
        # results that may wait for the reader; where time counts, no client waits behind another one or for the reader
        ahead = 2 * _QUEUED * len(self._actors) if timeout is None else len(calls)
        queued = _QUEUED if timeout is None else 1
        while following < len(calls):
            while waiting and len(running) + len(done) < ahead and min(load) < queued:
                worker = load.index(min(load))
                call = waiting.popleft()
                refs = call.start(self._actors[worker])
                running[refs[0]] = (call, refs, worker)
                load[worker] += 1
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(running), num_returns=1, timeout=left)
            if not ready:
                for call in [c for c, _, _ in running.values()] + list(waiting):
                    done[order[id(call)]] = f"no reply within {timeout:g} s"
                for _, _, worker in running.values():  # whoever is late may never end
                    ray.kill(self._actors[worker])
                    self._actors[worker] = self._new_worker()
                running, waiting = {}, deque()
            for ref in ready:
                call, refs, worker = running[ref]
                try:
                    done[order[id(call)]] = self._result(call, refs)
                    del running[ref]
                    load[worker] -= 1
                except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                    lost = [first for first, (_, _, its_worker) in running.items() if its_worker == worker]
                    unlucky = [running.pop(first)[0] for first in lost]
                    unlucky[0].deaths += 1  # it was running; the others waited behind it
                    if unlucky[0].deaths > _TRIES:
                        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                        dead = unlucky.pop(0)
                        done[order[id(dead)]] = f"its worker died {dead.deaths} times: {reason}"
                    waiting.extendleft(reversed(unlucky))
                    self._actors[worker] = self._new_worker()
                    load[worker] = 0
            while following in done:
                yield calls[following], done.pop(following)
                following += 1

    def _result(self, call: _Call, refs: list[Any]) -> Any:
        """Return a call's result, or the reason why it has none. Raises where the worker itself has died."""
        try:
            result = ray.get(refs[0])
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
            raise
        except ray.exceptions.RayError as error:
            return f"its worker failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        for message, state in zip(call.messages, refs[1:], strict=True):
            self._states[message.metadata.dst_node_id] = state
        return result

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the nodes' states as they are now, fetched one at a time."""
        return _States(dict(self._states))

    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Put the nodes' states of a checkpoint into the object store."""
        self._states = {node: ray.put(state) for node, state in states}

    def close(self) -> None:
        """End the workers, and the cluster if the engine started it."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._started:
            ray.shutdown()


def count_workers(workers: Workers, cpus: float, gpus: float, cluster: dict[str, float], cohort: int) -> int:
    """Return how many workers to start, each with this share of CPUs and GPUs, on a cluster that has so many of them.

    Raises InputError where none fits, or fewer than the config wants.
    """
    shares = [(name, share) for name, share in (("CPU", cpus), ("GPU", gpus)) if share > 0]
    if not shares:
        raise InputError("engine: cpus_per_worker and gpus_per_worker are both 0; a worker needs a share of one.")
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"engine.gpus_per_worker = {gpus:g}: a worker has a fraction of one GPU, or whole GPUs.")
    fits = []
    for name, share in shares:
        total = cluster.get(name, 0)
        fits.append(int(total) * int(1 / share + 1e-9) if name == "GPU" and share < 1 else int(total / share + 1e-9))
    have = f"{cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs"
    need = f"{cpus:g} CPUs and {gpus:g} GPUs a worker"
    most = min(fits)
    if most < 1:
        raise InputError(f"engine: no worker fits: the cluster has {have}, the config wants {need}.")
    if workers == "auto":
        return min(most, cohort)
    if workers > most:
        raise InputError(f"engine.workers = {workers}: {most} fit; the cluster has {have}, the config wants {need}.")
    return workers


class _Call:
    """Work for one worker: how to start it, and the messages that it answers."""

    def __init__(self, start: Callable[[Any], list[Any]], messages: list[Message]) -> None:
        self.start = start
        self.messages = messages
        self.deaths = 0  # of workers that were running it


class _States(Iterable[tuple[int, RecordDict]]):
    """Nodes' states in the object store, each fetched when it is read."""

    def __init__(self, refs: dict[int, Any]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[tuple[int, RecordDict]]:
        for node in sorted(self._refs):
            if state := ray.get(self._refs[node]):
                yield node, state


class _Contents:
    """Stores the contents of one exchange, equal ones once."""

    def __init__(self) -> None:
        self._refs: dict[int, Any] = {}

    def put(self, message: Message) -> Any:
        content = message.content
        if id(content) not in self._refs:
            self._refs[id(content)] = ray.put(content)
        return self._refs[id(content)]


def connect(address: str | None) -> None:
    """Attach to the cluster at `host:port` (or `auto`, the one of this machine), or start one here for None.

    Raises InputError where none answers: Ray itself would ask again for minutes.
    """
    try:
        if address is not None and address != "auto":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError) as error:
        raise InputError(f"engine.address = {address!r}: no Ray cluster answers there: {error}") from error

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
from dataclasses import dataclass
from typing import Annotated, Any, Literal

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU leave CUDA's variable alone

import ray
from flwr.app import Message, RecordDict
from pydantic import Field

from fedkd.config import Config, Limits
from fedkd.core.client_app import make_client_app
from fedkd.core.environment import Device, Threads, prepare_process
from fedkd.core.setup import Setup, make_setup
from fedkd.errors import InputError, RunError, StatesLost
from fedkd.messages.arrival import Expectation
from fedkd.messages.flower import error_reply, without_content
from fedkd.messages.merging import Block, Merge, merge_block

from .base import SimulationGrid
from .node import call_node

_log = logging.getLogger("fedkd")
Workers = Literal["auto"] | Annotated[int, Field(ge=1)]
_TRIES = 3  # how often clients run again whose worker died, before that is their failure
_START_SECONDS = 300.0  # to wait for a worker where none is left
_QUEUED = 2  # calls a worker has at most, so that it never waits for the driver


@dataclass
class _Result:
    """A reply or a merged block, and which of its nodes keep a state."""

    value: Any
    keeps: list[bool]


class _Worker:
    """Runs the clients of messages in a process of its own."""

    def __init__(self, config: Config, data: Any, threads: int, device: Device, gpu: bool) -> None:
        self.setup = make_setup(config, data, prepare_process(threads, device, gpu))
        self.app = make_client_app(self.setup.strategy, lambda: self.setup)

    def ready(self) -> bool:
        return True

    def call(self, message: Message, content: RecordDict, state: RecordDict | None) -> tuple[_Result, RecordDict]:
        """Run one client; return its reply and its new state, which goes back to the object store by itself."""
        message.content = content
        reply, after = call_node(self.setup.environment, self.app, message, state or RecordDict())
        return _Result(reply, [bool(after)]), after

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
                result, after = self.call(message, contents[number], state)
                states.append(after)
                yield result.value

        block = merge_block(replies(), merge, expectation, limits)
        return (_Result(block, [bool(state) for state in states]), *states)


class RayGrid(SimulationGrid):
    """Clients run on Ray actors, as many at a time as there are workers."""

    def __init__(
        self,
        setup: Setup,
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
        super().__init__(setup)
        environment = setup.environment
        self._started = not ray.is_initialized()
        if self._started:
            connect(address)
        self._slots: list[_Slot] = []
        try:
            cohort = environment.config.cohort or environment.data.clients
            machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
            count = count_workers(workers, cpus_per_worker, gpus_per_worker, machines, cohort)
            self._data = ray.put(environment.data)  # held as long as a worker may have to start again
            self._shares = (cpus_per_worker, gpus_per_worker)
            self._arguments = (environment.config, self._data, threads, device, gpus_per_worker > 0)
            self._slots = [self._new_slot() for _ in range(count)]
            starting = [slot.starting for slot in self._slots]
            ready, _ = ray.wait(starting, num_returns=count, timeout=_START_SECONDS)
            if len(ready) < count:
                raise InputError(
                    f"engine: {len(ready)} of {count} workers have started within {_START_SECONDS:g} s; does another "
                    "job have the cluster's CPUs or GPUs? engine.workers says how many are wanted."
                )
            ray.get(starting)
            for slot in self._slots:
                slot.starting = None
        except BaseException:
            self.close()
            raise
        environment.use_device(prepare_process(threads, device, gpu=gpus_per_worker > 0))
        self._states: dict[int, Any] = {}
        self._halved = False

    def _new_slot(self) -> _Slot:
        # the engine restarts workers itself: it knows which client was running when one died
        cpus, gpus = self._shares
        actor: Any = ray.remote(_Worker).options(num_cpus=cpus, num_gpus=gpus).remote(*self._arguments)
        return _Slot(actor, actor.ready.remote())

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
        return (
            reply if isinstance(reply, Message) else error_reply(call.messages[0], reply)
            for call, reply in self._in_order(queue, timeout)
        )

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
        """Keep the workers busy, from now on; yield each call with its result, or why there is none, in order."""
        for number, call in enumerate(calls):
            call.number = number
        waiting = deque(calls)
        running: dict[Any, tuple[_Call, list[Any], _Slot, Any]] = {}  # in the order in which they were started
        done: dict[int, Any] = {}
        left = timeout  # seconds; those in which no worker is there, or the reader is at something else, do not count
        following = 0
        # results that may wait for the reader; where time counts, no client waits behind another one
        ahead = 2 * _QUEUED * len(self._slots) if timeout is None else len(calls)
        queued = _QUEUED if timeout is None else 1
        if timeout is None and calls and calls[0].measures:  # small replies, and nobody may be reading yet
            ahead = queued = len(calls)

        def again(lost: Iterable[_Call]) -> None:
            waiting.extendleft(sorted(lost, key=lambda call: -call.number))

        def release(ref: Any) -> None:
            _, _, slot, actor = running.pop(ref)
            if slot.actor is actor:
                slot.load -= 1

        def start() -> None:
            free = [slot for slot in self._slots if slot.starting is None]
            while waiting and free and len(running) + len(done) < ahead:
                slot = min(free, key=lambda slot: slot.load)
                if slot.load >= queued and running:  # with none of its own, it would wait for another exchange's
                    return
                call = waiting.popleft()
                refs = call.start(slot.actor)
                running[refs[0]] = (call, refs, slot, slot.actor)
                slot.load += 1

        def results() -> Iterator[tuple[_Call, Any]]:
            nonlocal running, waiting, following, left
            while following < len(calls):
                start()
                starting = {slot.starting: slot for slot in self._slots if slot.starting is not None}
                begin = time.monotonic()
                ready, _ = ray.wait([*running, *starting], num_returns=1, timeout=left if running else _START_SECONDS)
                if left is not None and running:
                    left = max(0.0, left - (time.monotonic() - begin))
                if not ready and not running:
                    raise RunError(f"No worker has started within {_START_SECONDS:g} s; is the cluster still there?")
                if not ready:
                    for call in [c for c, *_ in running.values()] + list(waiting):
                        done[call.number] = f"no reply within {timeout:g} s"
                    for slot in {id(slot): slot for _, _, slot, _ in running.values()}.values():
                        self._replace(slot)  # whoever is late may never end
                    running, waiting = {}, deque()
                for ref in ready:
                    if ref in starting:
                        self._started_one(starting[ref])
                        continue
                    call, refs, slot, actor = running[ref]
                    try:
                        result = self._result(call, refs)
                    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                        lost = [first for first, (_, _, _, its) in running.items() if its is actor]
                        unlucky = [running.pop(first)[0] for first in lost]
                        if isinstance(error, ray.exceptions.OutOfMemoryError) and self._halve("the machine's memory"):
                            again([*unlucky, *(call for call, *_ in running.values())])
                            running = {}
                            continue
                        if slot.actor is not actor or slot not in self._slots:  # it was ended, and replaced
                            again(unlucky)
                            continue
                        unlucky[0].deaths += 1  # it was running; the others waited behind it
                        if unlucky[0].deaths > _TRIES:
                            dead = unlucky.pop(0)
                            done[dead.number] = f"its worker died {dead.deaths} times: {_told(error)}"
                        again(unlucky)
                        _log.warning("a worker died: %s", _told(error))
                        self._replace(slot)
                        continue
                    except ray.exceptions.ObjectLostError as error:  # with the machine that held it
                        release(ref)
                        self._need_states(call)
                        call.deaths += 1
                        if call.deaths > _TRIES:
                            done[call.number] = f"its reply was lost {call.deaths} times: {_told(error)}"
                        else:
                            again([call])
                        continue
                    if (reason := _out_of_memory(result)) is not None and self._halve(reason):
                        again(call for call, *_ in running.values())
                        running = {}
                        continue
                    if isinstance(result, _Result):
                        self._keep(call, refs, result)
                    done[call.number] = result.value if isinstance(result, _Result) else result
                    release(ref)
                while following in done:
                    yield calls[following], done.pop(following)
                    following += 1

        def to_the_end() -> Iterator[tuple[_Call, Any]]:
            try:
                yield from results()
            finally:
                for ref in list(running):  # where nobody reads on
                    release(ref)

        if timeout is None:
            start()
        return to_the_end()

    def _result(self, call: _Call, refs: list[Any]) -> Any:
        """Return a call's result, or the reason why it has none. Raises where the worker or the result is gone."""
        try:
            return ray.get(refs[0])
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError):
            raise
        except ray.exceptions.RayError as error:
            return f"its worker failed: {_told(error)}"

    def _keep(self, call: _Call, refs: list[Any], result: _Result) -> None:
        for message, state, keeps in zip(call.messages, refs[1:], result.keeps, strict=True):
            if keeps:
                self._states[message.metadata.dst_node_id] = state
            else:
                self._states.pop(message.metadata.dst_node_id, None)

    def _replace(self, slot: _Slot) -> None:
        """Put a new worker in the place of one; it gets work once it has started, which may never be."""
        ray.kill(slot.actor)
        fresh = self._new_slot()
        slot.actor, slot.starting, slot.load = fresh.actor, fresh.starting, 0

    def _started_one(self, slot: _Slot) -> None:
        try:
            ray.get(slot.starting)
            slot.starting, slot.failures = None, 0
        except ray.exceptions.RayError as error:
            slot.failures += 1
            if slot.failures <= _TRIES:
                self._replace(slot)
                return
            self._slots.remove(slot)
            if not self._slots:
                raise RunError(f"No worker is left, and none can be started: {_told(error)}") from error

    def _need_states(self, call: _Call) -> None:
        """Raise StatesLost where a node of a call has lost its state."""
        for message in call.messages:
            node = message.metadata.dst_node_id
            if node in self._states:
                try:
                    ray.get(self._states[node])
                except ray.exceptions.RayError as error:
                    raise StatesLost(f"Node {node} has lost its state with the machine that held it.") from error

    def _halve(self, reason: str) -> bool:
        """Start half as many workers anew, once a run; return whether there was anything to halve."""
        if self._halved or len(self._slots) == 1:
            return False
        self._halved = True
        cpus, gpus = self._shares
        self._shares = (cpus, gpus if gpus >= 1 else min(1.0, 2 * gpus))  # half as many on each GPU
        for slot in self._slots:
            ray.kill(slot.actor)
        _log.warning(
            "out of memory (%s): %d workers go on in place of %d", reason, len(self._slots) // 2, len(self._slots)
        )
        self._slots = [self._new_slot() for _ in range(len(self._slots) // 2)]
        return True

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the nodes' states as they are now, fetched one at a time."""
        return _States(dict(self._states))

    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Put the nodes' states of a checkpoint into the object store."""
        self._states = {node: ray.put(state) for node, state in states}

    def close(self) -> None:
        """End the workers, and the cluster if the engine started it."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots, self._states = [], {}
        if self._started:
            ray.shutdown()


def count_workers(
    workers: Workers, cpus: float, gpus: float, machines: list[dict[str, float]], cohort: int, memory: float = 0.0
) -> int:
    """Return how many workers to start, each with this share of CPUs and GPUs, on machines that have so many of them.

    `memory`: bytes that are set aside for each. A worker is on one machine. Raises InputError where none fits, or fewer
    than the config wants.
    """
    if cpus <= 0 and gpus <= 0:
        raise InputError("engine: cpus_per_worker and gpus_per_worker are both 0; a worker needs a share of one.")
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"engine.gpus_per_worker = {gpus:g}: a worker has a fraction of one GPU, or whole GPUs.")
    most = sum(fit(machine, cpus, gpus, memory) for machine in machines)
    total = {name: sum(machine.get(name, 0) for machine in machines) for name in ("CPU", "GPU")}
    have = f"{total['CPU']:g} CPUs and {total['GPU']:g} GPUs" + (f" on {len(machines)} machines" * (len(machines) > 1))
    need = f"{cpus:g} CPUs and {gpus:g} GPUs a worker"
    if memory:
        have += f", {max(machine.get('memory', 0) for machine in machines) / 2**30:.1f} GiB of memory on the largest"
        need += f", and {memory / 2**30:g} GiB of memory"
    if most < 1:
        raise InputError(f"engine: no worker fits: the cluster has {have}, the config wants {need}.")
    if workers == "auto":
        return min(most, cohort)
    if workers > most:
        raise InputError(f"engine.workers = {workers}: {most} fit; the cluster has {have}, the config wants {need}.")
    return workers


def fit(machine: dict[str, float], cpus: float, gpus: float, memory: float) -> int:
    """Return how many workers fit on a machine. A share of a GPU never straddles two."""
    fits = []
    if cpus > 0:
        fits.append(int(machine.get("CPU", 0) / cpus + 1e-9))
    if 0 < gpus < 1:
        fits.append(int(machine.get("GPU", 0)) * int(1 / gpus + 1e-9))
    elif gpus > 0:
        fits.append(int(machine.get("GPU", 0) / gpus + 1e-9))
    if memory > 0:
        fits.append(int(machine.get("memory", 0) / memory))
    return min(fits)


class _Call:
    """Work for one worker: how to start it, and the messages that it answers."""

    def __init__(self, start: Callable[[Any], list[Any]], messages: list[Message]) -> None:
        self.start = start
        self.messages = messages
        self.measures = messages[0].metadata.message_type == "train.evaluate"
        self.number = 0  # in its exchange
        self.deaths = 0  # of workers that were running it


@dataclass(eq=False)
class _Slot:
    """A worker, what tells that it has started (None: it has), how many calls it has, how often it did not start."""

    actor: Any
    starting: Any
    load: int = 0
    failures: int = 0


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _out_of_memory(result: Any) -> str | None:
    """Return what a client said that ran out of memory, if one of a call did."""
    value = result.value if isinstance(result, _Result) else None
    if isinstance(value, Message):
        reasons = [value.error.reason or ""] if value.has_error() else []
    else:
        reasons = [arrival.failure or "" for arrival in value.arrivals] if isinstance(value, Block) else []
    return next((reason for reason in reasons if reason.startswith(("OutOfMemoryError", "MemoryError"))), None)


class _States(Iterable[tuple[int, RecordDict]]):
    """Nodes' states in the object store, each fetched when it is read."""

    def __init__(self, refs: dict[int, Any]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[tuple[int, RecordDict]]:
        for node in sorted(self._refs):
            try:
                state = ray.get(self._refs[node])
            except ray.exceptions.RayError as error:
                raise StatesLost(f"Node {node} has lost its state with the machine that held it.") from error
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
        ray.init(
            address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
        )
    except (OSError, ValueError) as error:
        raise InputError(f"engine.address = {address!r}: no Ray cluster answers there: {error}") from error

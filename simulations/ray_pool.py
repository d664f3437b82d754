"""The pool of Ray workers: it gives them work, replaces those that die, and returns results in order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from flwr.app import Message

from fedkd.errors import InputError, RunError, StatesLost
from fedkd.messages.merging import Block

from .node_states import NodeStates
from .ray_actor import ClientActor, Result
from .ray_cluster import TRAVELS, is_own, lost, refuse_lost

_log = logging.getLogger("fedkd")
_TRIES = 3  # if the worker of a client dies this often, the client has failed
_START_SECONDS = 300.0  # time to wait for a worker if none is left
_LOOK_SECONDS = 1.0  # time between two looks at Ray's own processes
_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # for which PyTorch has no type of error
_SMALL = 100 * 1024  # bytes of a state that the driver itself keeps; larger ones are in the object store
_QUEUED = 2  # the most calls of a worker: with two it never waits for the driver


class WorkerPool:
    """Ray workers, and the states of nodes, which move between workers through the object store."""

    def __init__(self, arguments: tuple[Any, ...], shares: tuple[float, float]) -> None:
        """Make an empty pool. `arguments`: of each ClientActor. `shares`: the CPUs and GPUs of each."""
        self.slots: list[Slot] = []
        self.states: NodeStates[Any] = NodeStates()  # references to them
        self.events: list[str] = []  # what happened on the workers, each once
        self._arguments = arguments
        self._shares = shares
        self._halved = False

    def start(self, count: int) -> None:
        """Start the workers. Raises InputError if they do not start in time."""
        self.slots = [self._new_slot() for _ in range(count)]
        starting = [slot.starting for slot in self.slots]
        ready = _wait(starting, count, _START_SECONDS)
        if len(ready) < count:
            raise InputError(
                f"engine: only {len(ready)} of {count} workers have started within {_START_SECONDS:g} s; another job "
                "may use the cluster's CPUs or GPUs. Set engine.workers to a smaller number."
            )
        ray.get(starting)
        for slot in self.slots:
            slot.starting = None

    def close(self) -> None:
        """Stop the workers and drop the states."""
        if lost() is None:
            for slot in self.slots:
                ray.kill(slot.actor)
        self.slots = []
        self.states.restore({})

    def _new_slot(self) -> Slot:
        # Ray must not restart workers: the pool does, because it knows which client was running when one died
        cpus, gpus = self._shares
        actor: Any = ray.remote(ClientActor).options(num_cpus=cpus, num_gpus=gpus).remote(*self._arguments)
        return Slot(actor, actor.ready.remote())

    def in_order(self, calls: list[Call], timeout: float | None) -> Iterator[tuple[Call, Any]]:
        """Start to give the workers work; yield each call with its result, or the reason why it has none, in order."""
        for number, call in enumerate(calls):
            call.number = number
        waiting = deque(calls)
        running: dict[Any, tuple[Call, list[Any], Slot, Any]] = {}  # in the order in which they were started
        done: dict[int, Any] = {}
        left = timeout  # seconds; time without a worker, or in which the reader does other work, does not count
        following = 0
        # the number of results that may wait for the reader; with a timeout, no client waits for another one
        ahead = 2 * _QUEUED * len(self.slots) if timeout is None else len(calls)
        queued = _QUEUED if timeout is None else 1
        if timeout is None and calls and calls[0].measures:  # replies are small, and the reader may come later
            ahead = queued = len(calls)

        def again(lost: Iterable[Call]) -> None:
            waiting.extendleft(sorted(lost, key=lambda call: -call.number))

        def release(ref: Any) -> None:
            _, _, slot, actor = running.pop(ref)
            if slot.actor is actor:
                slot.load -= 1

        def start() -> None:
            free = [slot for slot in self.slots if slot.starting is None]
            while waiting and free and len(running) + len(done) < ahead:
                slot = min(free, key=lambda slot: slot.load)
                if slot.load >= queued and running:  # if nothing is running, only another exchange could free a slot
                    return
                call = waiting.popleft()
                refs = call.start(slot.actor)
                running[refs[0]] = (call, refs, slot, slot.actor)
                slot.load += 1

        def results() -> Iterator[tuple[Call, Any]]:
            nonlocal running, waiting, following, left
            while following < len(calls):
                start()
                starting = {slot.starting: slot for slot in self.slots if slot.starting is not None}
                begin = time.monotonic()
                ready = _wait([*running, *starting], 1, left if running else _START_SECONDS)
                if left is not None and running:
                    left = max(0.0, left - (time.monotonic() - begin))
                if not ready and not running:
                    raise RunError(f"No worker has started within {_START_SECONDS:g} s; check that the cluster runs.")
                if not ready:
                    for call in [c for c, *_ in running.values()] + list(waiting):
                        done[call.number] = f"no reply within {timeout:g} s"
                    for slot in {id(slot): slot for _, _, slot, _ in running.values()}.values():
                        self._replace(slot)  # a late client may never end
                    running, waiting = {}, deque()
                for ref in ready:
                    if ref in starting:
                        self._started_one(starting[ref])
                        continue
                    call, refs, slot, actor = running[ref]
                    try:
                        result = self._result(call, refs)
                    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                        refuse_lost(after_error=True)
                        with_it = [first for first, (_, _, _, its) in running.items() if its is actor]
                        unlucky = [running.pop(first)[0] for first in with_it]
                        if isinstance(error, ray.exceptions.OutOfMemoryError) and self._halve("the machine's memory"):
                            again([*unlucky, *(call for call, *_ in running.values())])
                            running = {}
                            continue
                        if slot.actor is not actor or slot not in self.slots:  # it has been stopped and replaced
                            again(unlucky)
                            continue
                        unlucky[0].deaths += 1  # only this call was running; the others waited
                        if unlucky[0].deaths > _TRIES:
                            dead = unlucky.pop(0)
                            done[dead.number] = f"its worker died {dead.deaths} times: {_first_line(error)}"
                        again(unlucky)
                        _log.warning("a worker died: %s", _first_line(error))
                        self._replace(slot)
                        continue
                    except ray.exceptions.ObjectLostError as error:  # the machine that stored it is gone
                        refuse_lost(after_error=True)
                        release(ref)
                        self._need_states(call)
                        call.deaths += 1
                        if call.deaths > _TRIES:
                            done[call.number] = f"its reply was lost {call.deaths} times: {_first_line(error)}"
                        else:
                            again([call])
                        continue
                    if (reason := _out_of_memory(result)) is not None and self._halve(reason):
                        again(call for call, *_ in running.values())
                        running = {}
                        continue
                    if isinstance(result, Result):
                        self._keep(call, refs, result)
                        self.events += [text for text in result.events if text not in self.events]
                    done[call.number] = result.value if isinstance(result, Result) else result
                    release(ref)
                while following in done:
                    yield calls[following], done.pop(following)
                    following += 1

        def to_the_end() -> Iterator[tuple[Call, Any]]:
            try:
                yield from results()
            finally:
                for ref in list(running):  # if the reader stops early
                    release(ref)

        if timeout is None:
            start()
        return to_the_end()

    def _result(self, call: Call, refs: list[Any]) -> Any:
        """Return a call's result, or the reason why it has none. Raises if the worker or the result is gone."""
        try:
            return ray.get(refs[0])
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError):
            raise
        except ray.exceptions.RayError as error:
            refuse_lost(after_error=True)
            return f"its worker failed: {_first_line(error)}"

    def _keep(self, call: Call, refs: list[Any], result: Result) -> None:
        for message, state, size in zip(call.messages, refs[1:], result.kept, strict=True):
            if is_own() and _SMALL < size < 2 * TRAVELS:  # it has come with the result, and would stay in this process
                state = ray.put(ray.get(state))
            self.states.keep(message.metadata.dst_node_id, state if size else None)

    def _replace(self, slot: Slot) -> None:
        """Replace a worker by a new one. The new one gets work when it has started, which may never happen."""
        ray.kill(slot.actor)
        fresh = self._new_slot()
        slot.actor, slot.starting, slot.load = fresh.actor, fresh.starting, 0

    def _started_one(self, slot: Slot) -> None:
        try:
            ray.get(slot.starting)
            slot.starting, slot.failures = None, 0
        except ray.exceptions.RayError as error:
            refuse_lost(after_error=True)
            slot.failures += 1
            if slot.failures <= _TRIES:
                self._replace(slot)
                return
            self.slots.remove(slot)
            if not self.slots:
                raise RunError(f"No worker is left, and none can be started: {_first_line(error)}") from error

    def _need_states(self, call: Call) -> None:
        """Raise StatesLost if the state of a node of a call is lost."""
        for message in call.messages:
            node = message.metadata.dst_node_id
            if node in self.states.current:
                try:
                    ray.get(self.states.current[node])
                except ray.exceptions.RayError as error:
                    refuse_lost(after_error=True)
                    raise StatesLost(f"The state of node {node} was lost with the machine that stored it.") from error

    def _halve(self, reason: str) -> bool:
        """Replace the workers by half as many, at most once per run; return whether this was possible."""
        if self._halved or len(self.slots) == 1:
            return False
        self._halved = True
        cpus, gpus = self._shares
        self._shares = (cpus, gpus if gpus >= 1 else min(1.0, 2 * gpus))  # half as many workers on each GPU
        for slot in self.slots:
            ray.kill(slot.actor)
        _log.warning(
            "out of memory (%s): continuing with %d workers instead of %d",
            reason,
            len(self.slots) // 2,
            len(self.slots),
        )
        self.slots = [self._new_slot() for _ in range(len(self.slots) // 2)]
        return True


class Call:
    """Work for one worker: how to start it, and the messages that it answers."""

    def __init__(self, start: Callable[[Any], list[Any]], messages: list[Message]) -> None:
        self.start = start
        self.messages = messages
        self.measures = messages[0].metadata.message_type == "train.evaluate"
        self.number = 0  # its number in its exchange
        self.deaths = 0  # how many workers have died while they ran it


@dataclass(eq=False)
class Slot:
    """A worker. `starting`: a reference that is ready when it has started, then None. `load`: the number of its calls.
    `failures`: the number of failed starts.
    """

    actor: Any
    starting: Any
    load: int = 0
    failures: int = 0


def _wait(refs: list[Any], count: int, timeout: float | None) -> list[Any]:
    """Return the references that are ready, `count` of them or those of after `timeout` seconds.

    Raises EngineLost if Ray itself has died, which its own `wait` does not notice.
    """
    ends = None if timeout is None else time.monotonic() + timeout
    while True:
        refuse_lost()
        step = _LOOK_SECONDS if ends is None else max(0.0, min(_LOOK_SECONDS, ends - time.monotonic()))
        ready, _ = ray.wait(refs, num_returns=count, timeout=step)
        if len(ready) == count or (ends is not None and time.monotonic() >= ends):
            return list(ready)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _out_of_memory(result: Any) -> str | None:
    """Return the error of a client that ran out of memory, if there is one in a call."""
    reasons: list[str] = []
    for value in result.value if isinstance(result, Result) else []:
        if isinstance(value, Block):
            reasons += [arrival.failure or "" for arrival in value.arrivals]
        elif value.has_error():
            reasons.append(value.error.reason or "")
    return next((r for r in reasons if r.startswith(("OutOfMemoryError", "MemoryError")) or _CPU_MEMORY in r), None)

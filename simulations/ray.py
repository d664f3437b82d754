"""The Ray engine: clients run on actors, on the cores and GPUs of one machine or a cluster.

A worker is started once per run. It reads the federation's data from shared memory and keeps its model objects. A
request's content is stored once for all nodes that get it. A node's state moves between workers through the object
store; the driver keeps a reference to it. A worker that dies is replaced, and its clients run again with the same
message and state, so the result is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Annotated, Any

import ray
import torch
from flwr.app import Message, RecordDict
from pydantic import Field

from fedkd.config import to_table
from fedkd.core.environment import Device, Threads, prepare_process
from fedkd.core.gpu_settings import gpu_settings
from fedkd.core.setup import Setup
from fedkd.errors import InputError, StatesLost
from fedkd.messages.arrival import Door
from fedkd.messages.flower import error_reply, without_content
from fedkd.messages.ledger import count_bytes
from fedkd.messages.merging import Block, Merge, merge_block

from .base import SimulationGrid
from .path_choice import WantedPath, paths_of_step
from .ray_cluster import TRAVELS, full_disk, is_own, refuse_lost, umask
from .ray_placement import Workers, connect, count_workers, disconnect, refuse_relative_files
from .ray_pool import Call, WorkerPool
from .stacking import ClientsPerStep, Fixed, blocks_of_step, clients_of_step, note_step, parted

_log = logging.getLogger("fedkd")
_SMALL = 16 * 1024  # bytes of a content that Ray sends with a call, on a cluster with Ray's own settings


class RayGrid(SimulationGrid):
    """Clients run on Ray actors; each worker runs one client at a time."""

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
        deterministic: bool = True,
        clients_per_step: ClientsPerStep = 1,
        path: WantedPath = "auto",
        cuda_graphs: bool = False,
        compile: bool = False,
    ) -> None:
        """Start the workers on the cluster at `address`, or on a cluster on this machine that ends with the engine.

        `workers = "auto"`: as many as fit on the cluster's CPUs and GPUs, but not more than the nodes of a round.
        `device = "auto"`: a GPU if workers have a share of one, also for the server's own work. With more than one
        client per step each worker does what the vectorised engine does. Raises InputError for an address without a
        cluster, for more workers than fit, and for a timeout with several clients per step.
        """
        super().__init__(setup)
        environment = setup.environment
        if clients_per_step != 1:
            _refuse_timeout(environment.config.timeout)
        self._reported = 0
        self._started = not ray.is_initialized()
        if self._started:
            connect(address)
        self._small = TRAVELS // 2 if is_own() else _SMALL
        self._pool: WorkerPool | None = None
        self._until_closed = ExitStack()
        try:
            cohort = environment.config.cohort or environment.data.clients
            if (note := full_disk()) is not None:
                _log.warning("fedkd: %s", note)  # no event: a run's records do not depend on the machine
            machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
            refuse_relative_files(
                to_table(environment.config), {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
            )
            if device == "cuda" and not any(machine.get("GPU", 0) for machine in machines):
                raise InputError("engine.device = 'cuda': no machine of the cluster has a GPU; set 'auto' or 'cpu'.")
            count = count_workers(workers, cpus_per_worker, gpus_per_worker, machines, cohort)
            chosen = prepare_process(threads, device, gpu=gpus_per_worker > 0)
            self._until_closed.enter_context(gpu_settings(torch.device(chosen), deterministic, self.note))
            environment.use_device(chosen)
            self._clients = clients_of_step(environment, clients_per_step, min(1.0, gpus_per_worker or 1.0))
            path = paths_of_step(environment, path, self._clients, self.note)
            if self._clients > 1:
                note_step(environment, self._clients, path)
            self._data = ray.put(environment.data)  # kept as long as a worker may have to start again
            arguments = (
                environment.config, self._data, threads, device, gpus_per_worker > 0, deterministic, umask(),
                self._clients, path, Fixed(cuda_graphs, compile),
            )  # fmt: skip
            self._pool = WorkerPool(arguments, (cpus_per_worker, gpus_per_worker))
            self._pool.start(count)
        except BaseException:
            self.close()
            raise

    @property
    def pool(self) -> WorkerPool:
        """Return the workers."""
        assert self._pool is not None, "the engine is closed"
        return self._pool

    def carry(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run each client on the next free worker."""
        contents = _Contents(self._small)
        queue = [self._call_of("call", group, contents) for group in parted(messages, self._clients)]
        return self._replies(self.pool.in_order(queue, timeout))  # the workers begin before a reply is read

    def _replies(self, results: Iterator[tuple[Call, Any]]) -> Iterator[Message]:
        for call, found in results:
            if isinstance(found, list):
                yield from found
            elif len(call.messages) == 1:
                yield error_reply(call.messages[0], found)
            else:  # one of its clients ended the process: run each separately, so that the others count
                yield from self._each(call.messages)

    def carry_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run each block of clients on the next free worker, which merges their replies.

        With a timeout each client runs separately and the driver merges: then a late node does not fail its block.
        """
        if timeout is not None:
            yield from super().carry_merged(blocks, merge, door, timeout)
            return
        contents = _Contents(self._small)
        queue: list[Call] = []
        for group in parted(blocks, blocks_of_step(self._clients) if self._clients > 1 else 1):
            messages = [message for block in group for message in block]
            queue.append(self._call_of("call_blocks", messages, contents, [len(block) for block in group], merge, door))
        sizes = iter([len(block) for block in blocks])
        for call, found in self.pool.in_order(queue, timeout):
            if isinstance(found, list):
                yield from found
                for _ in found:
                    next(sizes)
            else:  # one of its clients ended the process: run each separately, so that the others count
                replies, left = self._each(call.messages), len(call.messages)
                while left:
                    size = next(sizes)
                    left -= size
                    yield merge_block(islice(replies, size), merge, door)

    def _each(self, messages: list[Message]) -> Iterator[Message]:
        """Run each client separately."""
        contents = _Contents(self._small)
        return self._replies(self.pool.in_order([self._call_of("call", [one], contents) for one in messages], None))

    def _call_of(self, name: str, messages: list[Message], contents: _Contents, *more: Any) -> Call:
        """Return the call of a worker's method for messages."""
        refs = [contents.put(message) for message in messages]
        unique = list({id(ref): ref for ref in refs}.values())
        numbers = [next(i for i, u in enumerate(unique) if u is ref) for ref in refs]
        shells = [without_content(message) for message in messages]

        def start(actor: Any) -> list[Any]:
            states = [self.pool.states.current.get(shell.metadata.dst_node_id) for shell in shells]
            method = getattr(actor, name).options(num_returns=1 + len(shells))
            returned: list[Any] = method.remote(shells, numbers, *more, *unique, *states)
            return returned

        return Call(start, messages)

    def events(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        for text in self.pool.events[self._reported :]:
            self.note(text)
        self._reported = len(self.pool.events)
        return super().events()

    def settle(self, node: int, accepted: bool) -> None:
        """Keep the state that the node's last request left, or return to the one before; neither is fetched."""
        self.pool.states.settle(node, accepted)

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the current states of the nodes, fetched one at a time."""
        return _States(dict(self.pool.states.current))

    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Put the nodes' states of a checkpoint into the object store."""
        self.pool.states.restore({node: ray.put(state) for node, state in states})

    def close(self) -> None:
        """Stop the workers, and the cluster if the engine started it; restore the process's settings."""
        self._until_closed.close()
        if self._pool is not None:
            self._pool.close()
        if self._started:
            disconnect()


def _refuse_timeout(timeout: float | None) -> None:
    if timeout is not None:
        raise InputError(
            f"engine.clients_per_step with timeout = {timeout:g}: clients that train together end together, so nobody "
            "could say which of them is late; remove one of the two."
        )


class _States(Iterable[tuple[int, RecordDict]]):
    """The states of nodes in the object store. Each is fetched when it is read."""

    def __init__(self, refs: dict[int, Any]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[tuple[int, RecordDict]]:
        for node in sorted(self._refs):
            refuse_lost()
            try:
                state = ray.get(self._refs[node])
            except ray.exceptions.RayError as error:
                refuse_lost(after_error=True)
                raise StatesLost(f"The state of node {node} was lost with the machine that stored it.") from error
            yield node, state


class _Contents:
    """Stores the contents of one exchange. Shared contents are stored once; small ones travel with each call."""

    def __init__(self, small: int) -> None:
        """Let contents of up to `small` bytes travel with a call."""
        self._small = small
        self._refs: dict[int, Any] = {}

    def put(self, message: Message) -> Any:
        content = message.content
        if sum(count_bytes(content).values()) <= self._small:
            return content
        if id(content) not in self._refs:
            refuse_lost()
            self._refs[id(content)] = ray.put(content)
        return self._refs[id(content)]

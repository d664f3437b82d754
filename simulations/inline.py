"""The inline engine: all clients in this process, one after another. For debugging and small runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import torch
from flwr.app import Message, RecordDict

from fedkd.core.client_app import make_client_app
from fedkd.core.environment import Device, Threads, prepare_process
from fedkd.core.gpu_settings import gpu_settings
from fedkd.core.setup import Setup
from fedkd.messages.arrays import owned
from fedkd.messages.arrival import Door
from fedkd.messages.merging import Block, Merge, merge_block

from .base import SimulationGrid
from .node import call_node
from .node_states import NodeStates


class InlineGrid(SimulationGrid):
    """Clients run when their replies are read. A timeout has no effect, because nothing can interrupt a client here."""

    def __init__(
        self, setup: Setup, *, threads: Threads = 1, device: Device = "auto", deterministic: bool = True
    ) -> None:
        """Run clients in this process with this number of threads, on this device (`auto`: a GPU if there is one).

        `deterministic`: on a GPU too, a repeated run gives the same bytes.
        """
        super().__init__(setup)
        self._environment = setup.environment
        self._until_closed = ExitStack()
        self._until_closed.callback(torch.set_num_threads, torch.get_num_threads())
        chosen = prepare_process(threads, device, gpu=True)
        self._until_closed.enter_context(gpu_settings(torch.device(chosen), deterministic, self.note))
        self._environment.use_device(chosen)
        self._app = make_client_app(setup.strategy, lambda: setup)
        self._states: NodeStates[RecordDict] = NodeStates()

    def carry(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients one by one."""
        for message in messages:
            reply = self._call(message)
            if not reply.has_error():
                reply.content = owned(reply.content)  # the reader may keep it while the next clients run
            yield reply

    def carry_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients one by one, and merge each reply before the next client runs."""
        for block in blocks:
            yield merge_block(map(self._call, block), merge, door)

    def _call(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        before = self._states.current.get(node, RecordDict())
        reply, state = call_node(self._environment, self._app, message, before)
        self._states.keep(node, state or None)
        return reply

    def settle(self, node: int, accepted: bool) -> None:
        """Keep the state that the node's last request left, or return to the one before."""
        self._states.settle(node, accepted)

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the current states of the nodes."""
        return sorted(self._states.current.items(), key=lambda item: item[0])

    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Load the nodes' states of a checkpoint."""
        self._states.restore(dict(states))

    def close(self) -> None:
        """Restore the process's settings."""
        self._until_closed.close()

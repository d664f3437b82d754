"""The common part of the simulation engines: a Flower Grid with simulated nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedkd.core.setup import Setup
from fedkd.messages.arrival import Door
from fedkd.messages.carrier import Engine
from fedkd.messages.flower import be_the_server, give_ids, simulated_run
from fedkd.messages.merging import Block, Merge, merge_block

from .faults import events_of


class SimulationGrid(Engine, Grid):
    """A Flower Grid with simulated nodes 0, 1, .... Their states last as long as the engine.

    An engine implements `carry`, `states` and `restore`, and `carry_merged` if it can merge on workers. `call_node`
    runs a client with the faults of the config.
    """

    def __init__(self, setup: Setup) -> None:
        """Simulate the nodes of a federation."""
        be_the_server()
        environment = setup.environment
        self.config = environment.config
        self._about = simulated_run()
        self._sent: dict[str, Message] = {}
        self._nodes = range(environment.data.clients)
        self._events: list[dict[str, Any]] = []

    @abstractmethod
    def carry(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients for these messages; yield a reply or an error reply for each, in the messages' order."""

    def carry_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients for these blocks of messages; yield each block's merged replies, in order."""
        replies = self.carry([message for block in blocks for message in block], timeout)
        for block in blocks:
            yield merge_block(islice(replies, len(block)), merge, door)

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients, and record the injected faults as events."""
        self._note_faults(messages)
        return self.carry(messages, timeout)

    def exchange_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients block by block, and record the injected faults as events."""
        self._note_faults([message for block in blocks for message in block])
        return self.carry_merged(blocks, merge, door, timeout)

    def _note_faults(self, messages: list[Message]) -> None:
        for message in messages:
            self._events += events_of(self.config, message)

    def note(self, text: str) -> None:
        """Record an event."""
        self._events.append({"event": text})

    def events(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def nodes(self) -> Sequence[int]:
        """Return all nodes."""
        return self._nodes

    # Flower's interface

    def set_run(self, run: Run) -> None:
        """Store the run's description."""
        self._about = run

    @property
    def run(self) -> Run:
        """Return the run's description."""
        return self._about

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages and return their ids. Their clients run when the replies are pulled."""
        batch = list(messages)
        ids = give_ids(batch)
        self._sent.update(zip(ids, batch, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients for these messages and return their replies."""
        return list(self.exchange([self._sent.pop(i) for i in message_ids if i in self._sent], None))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the clients for these messages and return their replies, in the order of the messages."""
        batch = list(messages)
        give_ids(batch)
        return list(self.exchange(batch, timeout))

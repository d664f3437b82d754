"""What the simulation engines share: a Flower Grid whose replies come in the order of the messages, one at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from .flower import be_the_server, give_ids, simulated_run
from .merging import Block, Expectation, Merge

if TYPE_CHECKING:
    from .environment import Environment


class SimulationGrid(Grid):
    """A Flower Grid over simulated nodes 0, 1, ..., each with a state that lasts as long as the engine.

    An engine writes `exchange`, `exchange_merged`, `states` and `restore`. It is a context manager: leaving it frees
    what it started.
    """

    def __init__(self, environment: Environment) -> None:
        """Simulate the nodes of the environment's federation."""
        be_the_server()
        self.environment = environment
        self._about = simulated_run()
        self._sent: dict[str, Message] = {}

    def __enter__(self) -> SimulationGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients of these messages; yield a reply or an error reply a message, in the messages' order."""

    @abstractmethod
    def exchange_merged(
        self, blocks: list[list[Message]], merge: Merge, expectation: Expectation, limit: int, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients of these blocks of messages; yield each block's merged replies, in order."""

    @abstractmethod
    def states(self) -> Iterator[tuple[int, RecordDict]]:
        """Yield the nodes that have a lasting state, with it, by node."""

    @abstractmethod
    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Give nodes the states of a checkpoint."""

    def close(self) -> None:
        """Free what the engine started."""

    # Flower's interface

    def set_run(self, run: Run) -> None:
        """Keep the run's description."""
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
        return range(self.environment.data.clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they run when their replies are pulled. Returns their ids."""
        batch = list(messages)
        ids = give_ids(batch)
        self._sent.update(zip(ids, batch, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients of these messages and return their replies."""
        return list(self.exchange([self._sent.pop(i) for i in message_ids if i in self._sent], None))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Run the clients of these messages and return their replies, in the order of the messages."""
        batch = list(messages)
        give_ids(batch)
        return list(self.exchange(batch, timeout))

"""`Carrier`: the interface through which engines and real sites carry messages; `SiteCarrier` and `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from flwr.app import Message, RecordDict

from .arrival import Door
from .merging import Block, Merge, merge_block


class Carrier(ABC):
    """Carries the messages of a round to nodes, known by number, and returns the replies in the messages' order."""

    @abstractmethod
    def nodes(self) -> Sequence[int]:
        """Return the current nodes of the federation, ascending. Called before each round."""

    @abstractmethod
    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients for these messages; yield a reply or an error reply for each, in the messages' order."""

    def exchange_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients for these blocks of messages; yield each block's merged replies, in order."""
        replies = self.exchange([message for block in blocks for message in block], timeout)
        for block in blocks:
            yield merge_block(islice(replies, len(block)), merge, door)

    @abstractmethod
    def settle(self, node: int, accepted: bool) -> None:
        """Decide on the reply to a node's last request: the state that the request left counts if it was accepted.

        Otherwise the state of before the request is the node's state. Called once for each request, when its reply has
        been checked or has not come, and before the node's next request.
        """

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the current states of nodes that this side stores, by node. Each is read when it is needed."""
        return ()

    def lost_states(self) -> set[int]:
        """Return the nodes that have lost their state since the last call; none in a simulation."""
        return set()

    def images_of(self, node: int) -> int | None:
        """Return the number of images that a node reported at its first contact; None in a simulation."""
        return None

    def events(self) -> list[dict[str, Any]]:
        """Return the events of nodes since the last call."""
        return []


class SiteCarrier(Carrier):
    """A carrier to real sites, which are not trusted: a round whose result is not usable can be undone."""

    @abstractmethod
    def undo(self) -> None:
        """Go back to the states of nodes that counted at the last call of `nodes`."""


class Engine(Carrier):
    """A carrier for simulated nodes, which stores their states. A context manager: its exit calls `close`."""

    @abstractmethod
    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Give nodes the states of a checkpoint."""

    def close(self) -> None:
        """Stop everything that the engine started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

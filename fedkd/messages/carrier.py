"""What carries messages: `Carrier`, the interface of the engines and of real sites, and `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self

from flwr.app import Message, RecordDict

from ..config import Limits
from .arrival import Expectation
from .merging import Block, Merge, merge_block


class Carrier(ABC):
    """Carries the messages of a round to nodes, which have numbers, and returns the replies in the messages' order."""

    @abstractmethod
    def nodes(self) -> Sequence[int]:
        """Return the nodes of the federation, ascending, as they are before a round."""

    @abstractmethod
    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients of these messages; yield a reply or an error reply for each, in the messages' order."""

    def exchange_merged(
        self, blocks: list[list[Message]], merge: Merge, expectation: Expectation, limits: Limits, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients of these blocks of messages; yield each block's merged replies, in order."""
        replies = self.exchange([message for block in blocks for message in block], timeout)
        for block in blocks:
            yield merge_block(islice(replies, len(block)), merge, expectation, limits)

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the lasting states that this side keeps for nodes, by node, as they are now; read when needed."""
        return ()

    def images_of(self, node: int) -> int | None:
        """Return how many images a node reported at the first contact; None in a simulation, where nobody need ask."""
        return None

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened to nodes since this was last asked."""
        return []


class Engine(Carrier):
    """A carrier over simulated nodes, whose states it keeps. A context manager: leaving it frees what it started."""

    @abstractmethod
    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Give nodes the states of a checkpoint."""

    def close(self) -> None:
        """Free what the engine started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

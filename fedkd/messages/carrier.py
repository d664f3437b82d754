"""What carries messages: `Carrier`, the interface of the engines and of real sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from flwr.app import Message, RecordDict

from ..config import Limits
from .arrival import Expectation
from .merging import Block, Merge, merge_block


class Carrier(ABC):
    """Carries the messages of a round to nodes, which have numbers, and brings their replies in the messages' order."""

    @abstractmethod
    def nodes(self) -> Sequence[int]:
        """Return the nodes of the federation, ascending, as they are before a round."""

    @abstractmethod
    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients of these messages; yield a reply or an error reply a message, in the messages' order."""

    def exchange_merged(
        self, blocks: list[list[Message]], merge: Merge, expectation: Expectation, limits: Limits, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients of these blocks of messages; yield each block's merged replies, in order."""
        replies = self.exchange([message for block in blocks for message in block], timeout)
        for block in blocks:
            yield merge_block(islice(replies, len(block)), merge, expectation, limits)

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the nodes whose lasting state is ours to keep, with it, by node: as they are now, when it is read."""
        return ()

    def images_of(self, node: int) -> int | None:
        """Return how many images a node said it has before it was asked for anything; None where that is known."""
        return None

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened to nodes since this was last asked."""
        return []

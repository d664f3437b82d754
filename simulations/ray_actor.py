"""The Ray actor: a worker process that runs the clients of messages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict

from fedkd.config import Config
from fedkd.core.client_app import make_client_app
from fedkd.core.environment import Device, prepare_process
from fedkd.core.setup import make_setup
from fedkd.messages.arrival import Door
from fedkd.messages.merging import Merge, merge_block

from .node import call_node


@dataclass
class Result:
    """A reply or a merged block, and which of its nodes have a state."""

    value: Any
    keeps: list[bool]


class ClientActor:
    """Runs the clients of messages in a separate process. It keeps its model objects between clients."""

    def __init__(self, config: Config, data: Any, threads: int, device: Device, gpu: bool, mask: int) -> None:
        os.umask(mask)  # Ray's processes have one of their own
        # Ray's own handler raises SystemExit, which a running client would report as its failure: a killed worker must
        # die, so that another one runs its client again
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        self.setup = make_setup(config, data, prepare_process(threads, device, gpu))
        self.app = make_client_app(self.setup.strategy, lambda: self.setup)

    def ready(self) -> bool:
        """Return True. The call returns when the process has started."""
        return True

    def call(self, message: Message, content: RecordDict, state: RecordDict | None) -> tuple[Result, RecordDict]:
        """Run one client; return its reply and its new state, which Ray puts into the object store separately."""
        message.content = content
        reply, after = call_node(self.setup.environment, self.app, message, state or RecordDict())
        return Result(reply, [bool(after)]), after

    def call_block(
        self,
        messages: list[Message],
        numbers: list[int],
        merge: Merge,
        door: Door,
        *contents_and_states: Any,
    ) -> tuple[Any, ...]:
        """Run a block of clients and merge their replies. `numbers[i]` is the position of the content of message i.

        The states follow the contents, one for each message.
        """
        count = len(contents_and_states) - len(messages)
        contents, before = contents_and_states[:count], contents_and_states[count:]
        states: list[RecordDict] = []

        def replies() -> Iterator[Message]:
            for message, number, state in zip(messages, numbers, before, strict=True):
                result, after = self.call(message, contents[number], state)
                states.append(after)
                yield result.value

        block = merge_block(replies(), merge, door)
        return (Result(block, [bool(state) for state in states]), *states)

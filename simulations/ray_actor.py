"""The Ray actor: a worker process that runs the clients of messages."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from flwr.app import Message, RecordDict

from fedkd.config import Config
from fedkd.core.client_app import make_client_app
from fedkd.core.environment import Device, prepare_process
from fedkd.core.gpu_settings import gpu_settings
from fedkd.core.setup import make_setup
from fedkd.messages.arrays import owned
from fedkd.messages.arrival import Door
from fedkd.messages.ledger import all_bytes
from fedkd.messages.merging import Merge, merge_block

from .node import call_node
from .path_choice import WantedPath
from .stacking import Fixed, Stacker


@dataclass
class Result:
    """Replies or merged blocks, the bytes of their nodes' states (0: none), and what happened on the worker."""

    value: list[Any]
    kept: list[int]
    events: list[str] = field(default_factory=list)


class ClientActor:
    """Runs the clients of messages in a separate process. It keeps its model objects between clients."""

    def __init__(
        self,
        config: Config,
        data: Any,
        threads: int,
        device: Device,
        gpu: bool,
        deterministic: bool,
        mask: int,
        clients: int,
        path: WantedPath,
        fixed: Fixed,
    ) -> None:
        """Make the environment of a worker. `clients`: of a step."""
        os.umask(mask)  # Ray's processes have one of their own
        # Ray's own handler raises SystemExit, which a running client would report as its failure: a killed worker must
        # die, so that another one runs its client again
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
        chosen = prepare_process(threads, device, gpu)
        self.events: list[str] = []
        self.settings = ExitStack()  # kept as long as the process
        self.settings.enter_context(gpu_settings(torch.device(chosen), deterministic, self.events.append))
        self.setup = make_setup(config, data, chosen)
        self.app = make_client_app(self.setup.strategy, lambda: self.setup)
        self.stacker = Stacker(self.setup.environment, clients, path, fixed) if clients > 1 else None
        gc.freeze()  # as in `each_round`

    def ready(self) -> bool:
        """Return True. The call returns when the process has started."""
        return True

    def call(self, messages: list[Message], numbers: list[int], *contents_and_states: Any) -> tuple[Any, ...]:
        """Run clients; return their replies, and the new states, which Ray puts into the object store separately.

        `numbers[i]` is the position of the content of message i. The states follow the contents, one for each message.
        """
        states: list[RecordDict] = []
        replies = list(self._replies(messages, numbers, contents_and_states, states))
        return (self._result(replies, states), *states)

    def call_blocks(
        self,
        messages: list[Message],
        numbers: list[int],
        sizes: list[int],
        merge: Merge,
        door: Door,
        *contents_and_states: Any,
    ) -> tuple[Any, ...]:
        """Run clients and merge their replies in blocks of these sizes; return the blocks, and the new states."""
        states: list[RecordDict] = []
        replies = self._replies(messages, numbers, contents_and_states, states)
        blocks = [merge_block(islice(replies, size), merge, door) for size in sizes]
        return (self._result(blocks, states), *states)

    def _replies(
        self, messages: list[Message], numbers: list[int], contents_and_states: Sequence[Any], after: list[RecordDict]
    ) -> Iterator[Message]:
        """Yield the replies, and append each new state to `after`."""
        count = len(contents_and_states) - len(messages)
        contents, before = contents_and_states[:count], contents_and_states[count:]

        def one(message: Message, number: int, state: RecordDict | None) -> tuple[Message, RecordDict]:
            message.content = contents[number]
            reply, left = call_node(self.setup.environment, self.app, message, state or RecordDict())
            if self.stacker is not None and not reply.has_error():
                reply.content = owned(reply.content)  # the next client changes the model
            return reply, left

        calls = [partial(one, *arguments) for arguments in zip(messages, numbers, before, strict=True)]
        found = (call() for call in calls) if self.stacker is None else iter(self.stacker.run(calls))
        for reply, state in found:
            after.append(state)
            yield reply

    def _result(self, value: list[Any], states: list[RecordDict]) -> Result:
        events = self.events.copy()
        self.events.clear()
        if self.stacker is not None:
            events += self.stacker.events
            self.stacker.events = []
        return Result(value, [max(1, all_bytes(state)) if state else 0 for state in states], events)

"""Running one simulated node: the call of the ClientApp on one message, with the node's state around it."""

from __future__ import annotations

import traceback
from typing import Annotated, Literal

import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from pydantic import Field

from fedkd.flower import error_reply, node_context

Threads = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]


def call_node(app: ClientApp, message: Message, state: RecordDict, clients: int) -> tuple[Message, RecordDict]:
    """Return a node's reply and its new state; of a client that raises, an error reply and its state as it was."""
    node = message.metadata.dst_node_id
    context = node_context(node, clients, RecordDict(dict(state)))
    try:
        return app(message, context), context.state
    except Exception as error:  # whatever a client raises is a failure of that node, and of no other
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
        return error_reply(message, f"{type(error).__name__}: {error} ({where})"), state


def prepare_process(threads: int, device: Device, gpu: bool) -> str:
    """Set the number of threads of a process that runs clients, and return its device.

    One number of threads for all engines: sums in torch may depend on it. `gpu`: what `auto` stands for.
    """
    torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if gpu and torch.cuda.is_available() else "cpu"
    return device

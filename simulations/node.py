"""Running one simulated node: the call of the ClientApp on one message, with the node's state around it."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedkd.client import call
from fedkd.flower import node_context


def call_node(app: ClientApp, message: Message, state: RecordDict, clients: int) -> tuple[Message, RecordDict]:
    """Return a node's reply and its new state; of a client that raises, an error reply and its state as it was."""
    context = node_context(message.metadata.dst_node_id, clients, RecordDict(dict(state)))
    reply = call(app, message, context)
    return reply, context.state

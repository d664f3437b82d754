"""Runs one simulated node: calls the ClientApp with one message and the node's state, and injects faults."""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedkd.core.client_app import call
from fedkd.core.environment import Environment
from fedkd.messages.flower import error_reply, node_context

from .faults import damaged, fault_of


def call_node(
    environment: Environment, app: ClientApp, message: Message, state: RecordDict
) -> tuple[Message, RecordDict]:
    """Return a node's reply and its new state. If the client raises, return an error reply and the old state.

    A client whose reply is injected to be late or lost does not run: nothing of what it would do counts.
    """
    fault = fault_of(environment.config, message)
    if fault is not None and (reason := fault.failure(environment.config.timeout)) is not None:
        return error_reply(message, reason), state
    context = node_context(message.metadata.dst_node_id, environment.data.clients, RecordDict(dict(state)))
    reply = call(app, message, context)
    if fault is not None and fault.kind == "corrupted" and not reply.has_error():
        reply.content = damaged(reply.content, fault.damage)
    return reply, context.state

"""The Flower ClientApp that calls a strategy's client half."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ..messages.arrays import array_record
from ..messages.flower import error_reply
from ..messages.payload import FLOWER_ARRAYS, NODE, REPORT, ROUND, Payload, from_records
from ..streams import default_stream
from .client import Client

if TYPE_CHECKING:
    from .environment import Environment
    from .strategy import Strategy


def actions(client: type[Client]) -> list[str]:
    """Return the names of the requests that a client class answers: its methods that take exactly `request`."""
    return [
        name
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_") and list(inspect.signature(method).parameters) == ["self", "request"]
    ]


def make_client_app(strategy: Strategy, environment: Callable[[], Environment]) -> ClientApp:
    """Return the Flower ClientApp of a strategy: `train.<action>` for each of its client's requests.

    Flower's own `train` message, which stock strategies send, is answered by `fit` in Flower's own record names.
    `environment` is called in the process that runs the clients.
    """
    app = ClientApp()

    def handler(action: str) -> Callable[[Message, Context], Message]:
        return lambda message, context: _answer(environment(), message, context, action)

    client = strategy.client_class()
    for action in actions(client):
        app.train(action)(handler(action))
    if hasattr(client, "fit"):
        app.train()(lambda message, context: _answer_stock(environment(), message, context))
    return app


def _answer(environment: Environment, message: Message, context: Context, action: str) -> Message:
    reply, metrics = _call(environment, message, context, action)
    records = reply.to_records(copy=False)
    if metrics:
        records[REPORT] = MetricRecord({**metrics})
    return Message(records, reply_to=message)


def _answer_stock(environment: Environment, message: Message, context: Context) -> Message:
    reply, metrics = _call(environment, message, context, "fit")
    numbers = {"num-examples": reply.numbers["examples"], "train_loss": reply.numbers["loss"]}
    arrays = array_record(reply.weights, copy=False)
    records = RecordDict({FLOWER_ARRAYS: arrays, "metrics": MetricRecord({**numbers})})
    if metrics:
        records[REPORT] = MetricRecord({**metrics})
    return Message(records, reply_to=message)


def _call(
    environment: Environment, message: Message, context: Context, action: str
) -> tuple[Payload, dict[str, float]]:
    told = message.content.config_records.get(ROUND, ConfigRecord())
    node = cast(int, told.get(NODE, message.metadata.dst_node_id))
    measured = node in cast(list[int], told.get("measured", []))
    number = int(message.metadata.group_id or 0)
    client = environment.strategy.client_class()(environment, node, context.state, number, action, measured)
    with default_stream(client.stream("default")):
        reply = getattr(client, action)(from_records(message.content))
    return reply, client.metrics


def call(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the reply of a ClientApp; of a client that raises, an error reply, and the context's state as it was.

    The reply's arrays may be those of a model that the next client will change: send, merge or copy them before.
    """
    before = RecordDict(dict(context.state))
    try:
        return app(message, context)
    except Exception as error:  # whatever a client raises is a failure of that node, and of no other
        context.state = before
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
        return error_reply(message, f"{type(error).__name__}: {error} ({where})")

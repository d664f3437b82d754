"""The Flower ClientApp that calls a strategy's client half."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import cast

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ..errors import described, place_of
from ..messages.arrays import array_record
from ..messages.flower import error_reply
from ..messages.payload import FLOWER_ARRAYS, NODE, REPORT, ROUND, Payload, from_records
from ..stopping import Stopped, check
from ..streams import default_stream
from .client import Client, actions
from .setup import Setup
from .strategy import Strategy


def make_client_app(strategy: Strategy, setup: Callable[[], Setup]) -> ClientApp:
    """Return the Flower ClientApp of a strategy: `train.<action>` for each of its client's requests.

    The action `fit` also answers Flower's own `train` message, with Flower's own record names. Flower's strategies
    send this message.
    `setup` is called in the process that runs the clients.
    """
    app = ClientApp()

    client = strategy.client_class()

    def handler(action: str) -> Callable[[Message, Context], Message]:
        return lambda message, context: _answer(client, setup(), message, context, action)

    for action in actions(client):
        app.train(action)(handler(action))
    if hasattr(client, "fit"):
        app.train()(lambda message, context: _answer_flower(client, setup(), message, context))
    return app


def _answer(kind: type[Client], setup: Setup, message: Message, context: Context, action: str) -> Message:
    reply, metrics = _call(kind, setup, message, context, action)
    records = reply.to_records(copy=False)
    if metrics:
        records[REPORT] = MetricRecord({**metrics})
    return Message(records, reply_to=message)


def _answer_flower(kind: type[Client], setup: Setup, message: Message, context: Context) -> Message:
    reply, metrics = _call(kind, setup, message, context, "fit")
    numbers = {"num-examples": reply.numbers["examples"], "train_loss": reply.numbers["loss"]}
    arrays = array_record(reply.weights, copy=False)
    records = RecordDict({FLOWER_ARRAYS: arrays, "metrics": MetricRecord({**numbers})})
    if metrics:
        records[REPORT] = MetricRecord({**metrics})
    return Message(records, reply_to=message)


def _call(
    kind: type[Client], setup: Setup, message: Message, context: Context, action: str
) -> tuple[Payload, dict[str, float]]:
    found = message.content.get(ROUND)
    about_round = found if isinstance(found, ConfigRecord) else ConfigRecord()
    node = cast(int, about_round.get(NODE, message.metadata.dst_node_id))
    measured = node in cast(list[int], about_round.get("measured", []))
    number = int(message.metadata.group_id or 0)
    client = kind(setup.environment, setup.strategy.layers(), node, context.state, number, action, measured)
    with default_stream(client.stream("default")):
        reply = getattr(client, action)(from_records(message.content))
    if not isinstance(reply, Payload):
        raise TypeError(f"{type(client).__name__}.{action} must return a Payload, not {type(reply).__name__}")
    return reply, client.metrics


def call(app: ClientApp, message: Message, context: Context) -> Message:
    """Return the reply of a ClientApp. If the client raises, return an error reply and restore the context's state.

    The reply's arrays may be those of a model that the next client changes: send, merge or copy them before that.
    """
    check()  # a signal that the client before has swallowed
    before = RecordDict(dict(context.state))
    try:
        return app(message, context)
    except Stopped:
        raise
    except BaseException as error:  # any error of a client is a failure of its node only, also sys.exit
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, SystemExit) and frames and "/flwr/supercore/exit/" in frames[-1].filename:
            raise  # Flower ends this process
        context.state = before
        return error_reply(message, f"{described(error)}{place_of(error)}")

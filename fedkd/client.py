"""The client half of a strategy: `Client`, one method a request, and the Flower ClientApp that calls it."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from . import training
from .config import Adam, Sgd, TrainConfig
from .datasets import Images
from .flower import error_reply
from .models import fill
from .payload import (
    FLOWER_ARRAYS,
    NODE,
    REPORT,
    ROUND,
    Payload,
    Tensors,
    array_record,
    from_records,
    is_finite,
    tensors_of,
)
from .streams import default_stream, torch_stream
from .training import Loss, cross_entropy

if TYPE_CHECKING:
    from .environment import Environment
    from .strategy import Strategy

_MODEL = "model"  # where a node's state keeps its personal model


class Client:
    """The client half of a strategy: subclass it with one method a request, `def name(self, request: Payload)`.

    A method that takes exactly `request` answers the server's `ask("name", ...)` and returns a Payload. The object
    lives for one request. What must last is put into `self.state` (Flower's context of the node): with `keep` and
    `recall`, or `keep_model`. What a request changed of the state is lost when it raises.
    """

    strategy: Strategy

    def __init__(
        self, environment: Environment, node: int, state: RecordDict, number: int, action: str, measured: bool
    ) -> None:
        """Make the client of one request, in round `number`.

        `node`: its number in the federation. `measured`: whether the server wants its metrics in this round.
        """
        self.environment = environment
        self.strategy = environment.strategy.innermost
        self.node = node
        self.state = state
        self.round = number
        self.action = action
        self.measured = measured
        self.metrics: dict[str, float] = {}

    # The node's data

    @cached_property
    def data(self) -> Images:
        """Return the node's training images."""
        return self.environment.data.train_of(self.node)

    @cached_property
    def test_data(self) -> Images:
        """Return the node's test images, which follow its own label distribution."""
        return self.environment.data.test_of(self.node)

    @property
    def labels(self) -> Tensor:
        """Return the labels of the node's training images."""
        return torch.from_numpy(self.data.labels)

    @property
    def public(self) -> Images:
        """Return the public (transfer) set. Its labels are there to use only where `data.public.labelled` is true."""
        public = self.environment.data.public
        assert public is not None, "the strategy's check() asks for data.public"
        return public

    # Its randomness, its state

    def stream(self, purpose: str) -> torch.Generator:
        """Return the stream of this node and round for a purpose."""
        return torch_stream(self.environment.config.seed, self.round, self.node, f"{self.action}/{purpose}")

    def keep(self, name: str, tensors: Tensors) -> None:
        """Put named arrays into the node's lasting state.

        Raises ValueError for values that are not finite: a node whose training diverged once shall not carry it on.
        """
        for key, tensor in tensors.items():
            if not is_finite(tensor):
                raise ValueError(f"{name} {key!r} is not finite: local training has diverged, and is not kept")
        self.state[name] = array_record(tensors)

    def recall(self, name: str) -> Tensors | None:
        """Return what `keep` put under this name in an earlier request, or None."""
        record = self.state.array_records.get(name)
        return None if record is None else tensors_of(record)

    # Its model

    @property
    def has_model(self) -> bool:
        """Return whether the node keeps a personal model from an earlier request."""
        return _MODEL in self.state.array_records

    @cached_property
    def model(self) -> nn.Module:
        """Return the node's model, filled with its personal weights: the kept ones, else its initial ones.

        One object of an architecture serves all clients of a process in turn; `copy.deepcopy` it for a second model.
        """
        architecture = self.environment.architecture_of(self.node)
        weights = self.recall(_MODEL) or self.environment.initial_weights(architecture, self.node)
        model = self.environment.model(architecture)
        fill(model, weights)
        return model

    def load_model(self, weights: Tensors) -> nn.Module:
        """Return the node's model, filled with these weights."""
        model = self.environment.model(self.environment.architecture_of(self.node))
        fill(model, weights)
        self.__dict__["model"] = model
        return model

    def weights(self) -> Tensors:
        """Return the model's weights and buffers as CPU tensors."""
        return {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()}

    def keep_model(self) -> None:
        """Put the model's weights into the node's lasting state, as its personal model."""
        self.keep(_MODEL, self.weights())

    # Its work

    @property
    def settings(self) -> TrainConfig:
        """Return `[train]` with this round's learning rate."""
        return self.environment.config.train.in_round(self.round)

    def train(
        self,
        data: Images,
        targets: Tensor,
        *,
        purpose: str,
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: Sgd | Adam | None = None,
        loss: Loss = cross_entropy,
        augment: bool = True,
        beside: nn.Module | None = None,
    ) -> float:
        """Train the model on images and their targets; return the mean loss of the last epoch.

        What is not given comes from `[train]`. `purpose` names the random stream of the shuffles. Without `augment`
        the images stay as they are, for targets that were taken on them. `beside`: a module of the loss that the same
        optimiser trains.
        """
        settings = self.settings
        trained = self.model if beside is None else nn.ModuleList([self.model, beside])
        return training.train(
            self.model,
            data,
            targets,
            epochs=epochs if epochs is not None else settings.epochs,
            batch_size=batch_size or settings.batch_size,
            optimizer=training.make_optimizer(trained, optimizer or settings.optimizer),
            preprocess=self.environment.preprocess,
            order=self.stream(purpose),
            steps=settings.steps if epochs is None else None,
            clip=settings.clip,
            loss=loss,
            augment=augment,
        )

    def train_locally(self, loss: Loss = cross_entropy, optimizer: Sgd | Adam | None = None) -> float:
        """Train the model on the node's own labelled images as `[train]` says; return the mean loss of the last epoch.

        Reports `personal_after_fit/accuracy` where the server wants this node's metrics.
        """
        value = self.train(self.data, self.labels, purpose="local-training", loss=loss, optimizer=optimizer)
        self.measure("personal_after_fit")
        return value

    def predict(self, data: Images) -> Tensor:
        """Return the model's logits, N x C, in the order of the images, in eval mode."""
        return training.predict(self.model, data, self.environment.preprocess)

    def features(self, data: Images) -> Tensor:
        """Return the model's features, N x D, in the order of the images, in eval mode."""
        return training.features(self.model, data, self.environment.preprocess)

    # Its metrics

    def report(self, metric: str, value: float) -> None:
        """Report a metric, named `scope/metric`, of this node in this round."""
        self.metrics[metric] = float(value)

    def measure(self, scope: str) -> None:
        """Report `scope/accuracy` of the model as it is on the node's test images, where metrics are wanted."""
        if self.measured:
            self.report(f"{scope}/accuracy", self.score(self.test_data)["accuracy"])

    def score(self, data: Images) -> dict[str, float]:
        """Return `accuracy` (a fraction) and `loss` of the model on labelled images."""
        return training.evaluate(self.model, data, self.environment.preprocess)

    def evaluate(self, request: Payload) -> Payload:
        """Answer the core's request at the end of a round: report the metrics of the node's model.

        The node's model is the global one where the request carries weights, else its personal one.
        """
        if request.weights:
            self.load_model(request.weights)
        for metric, value in self.score(self.test_data).items():
            self.report(f"personal/{metric}", value)
        if not request.weights and len(self.environment.data.test.labels):  # else the server measures it, or nobody can
            self.report("personal_global_test/accuracy", self.score(self.environment.data.test)["accuracy"])
        return Payload()


class GlobalModelClient(Client):
    """The client half of methods that average weights: load the global model, train it, return it."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights on the node's images; return the new ones, `examples` and `loss`."""
        self.load_model(request.weights)
        loss = self.train_locally(self.local_loss(), self.local_optimizer())
        return Payload(weights=self.weights(), numbers={"examples": len(self.data.labels), "loss": loss})

    def local_loss(self) -> Loss:
        """Return the loss of local training. Called when the model holds the global weights."""
        return cross_entropy

    def local_optimizer(self) -> Sgd | Adam:
        """Return the optimiser of local training."""
        return self.settings.optimizer


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

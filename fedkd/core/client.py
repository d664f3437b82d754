"""The client half of a method: `Client`, one method for each request."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from ..config import Adam, Sgd, TrainConfig
from ..data.images import Images
from ..learning import evaluation, training
from ..learning.training import Loss, cross_entropy
from ..messages.arrays import Tensors, array_record, is_finite, tensors_of
from ..messages.metric_names import checked_metric
from ..messages.payload import Payload
from ..models.build import fill
from ..streams import torch_stream
from .environment import Environment

Kind = TypeVar("Kind")
MODEL = "model"  # where a node's state keeps its personal model


class Client:
    """The client half of a strategy: subclass it with one method for each request, `def name(self, request: Payload)`.

    A method that takes exactly `request` answers the server's `ask("name", ...)` and returns a Payload. The object
    lives for one request. What must last is put into `self.state` (Flower's context of the node): with `keep` and
    `recall`, or `keep_model`. What a request changed of the state is lost when it raises.
    """

    def __init__(
        self,
        environment: Environment,
        layers: Sequence[Any],
        node: int,
        state: RecordDict,
        number: int,
        action: str,
        measured: bool,
    ) -> None:
        """Make the client of one request, in round `number`.

        `layers`: the run's strategy and those that it wraps, outermost first. `node`: its number in the federation.
        `measured`: whether the server wants its metrics in this round.
        """
        self.environment = environment
        self.strategy: Any = layers[-1]  # whose hyper-parameters this client half reads
        self.layers = layers
        self.node = node
        self.state = state
        self.round = number
        self.action = action
        self.measured = measured
        self.metrics: dict[str, float] = {}

    def layer(self, kind: type[Kind]) -> Kind:
        """Return the run's strategy of a kind, such as the wrapper that adds to this client half. Raises TypeError."""
        found = next((layer for layer in self.layers if isinstance(layer, kind)), None)
        if found is None:
            raise TypeError(f"There is no {kind.__name__} in the strategy.")
        return found

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
        """Return the public set. Its labels are there to use only where `data.public.labelled` is true."""
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
        return MODEL in self.state.array_records

    @cached_property
    def model(self) -> nn.Module:
        """Return the node's model, filled with its personal weights: the kept ones, else its initial ones.

        One object of an architecture serves all clients of a process in turn; `copy.deepcopy` it for a second model.
        """
        architecture = self.environment.architecture_of(self.node)
        weights = self.recall(MODEL) or self.environment.initial_weights(architecture, self.node)
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
        self.keep(MODEL, self.weights())

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
        return evaluation.predict(self.model, data, self.environment.preprocess)

    def features(self, data: Images) -> Tensor:
        """Return the model's features, N x D, in the order of the images, in eval mode."""
        return evaluation.features(self.model, data, self.environment.preprocess)

    # Its metrics

    def report(self, metric: str, value: float) -> None:
        """Report a metric, named `scope/metric`, of this node in this round.

        Raises ValueError for a name that is not so or that is the server's, and for a value that is no finite number.
        """
        self.metrics[metric] = checked_metric(metric, value)

    def measure(self, scope: str) -> None:
        """Report `scope/accuracy` of the model as it is on the node's test images, where metrics are wanted."""
        if self.measured:
            self.report(f"{scope}/accuracy", self.score(self.test_data)["accuracy"])

    def score(self, data: Images) -> dict[str, float]:
        """Return `accuracy` (a fraction) and `loss` of the model on labelled images."""
        return evaluation.evaluate(self.model, data, self.environment.preprocess)

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

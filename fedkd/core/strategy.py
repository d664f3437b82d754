"""The server half of a method: `Strategy`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from ..config import Architecture
from ..data.spec import Kind, Task
from ..messages.arrays import Tensors
from ..messages.payload import Payload
from ..models.build import fill
from ..streams import default_stream, torch_stream
from .client import Client
from .environment import Environment
from .round import Round


@dataclass(kw_only=True)
class Strategy(ABC):
    """The server half of a method. A subclass writes `run_round`, and if needed `prepare` and `check`.

    A subclass is a keyword-only dataclass. Its fields are the method's hyper-parameters, the keys of `[strategy]` in a
    config, checked by their annotations. Nodes make the same object, so a client reads them as `self.strategy.<name>`.
    Fields with `init=False` are the server's state, which lasts between rounds. The core saves them with each
    checkpoint and restores them. If a round sets an attribute that is not such a field, this is an error.
    """

    client: ClassVar[type[Client]] = Client
    kinds: ClassVar[frozenset[Kind]] = frozenset({"image"})  # the kinds of samples that the method serves
    why_not: ClassVar[Mapping[Kind, str]] = {}  # why it cannot serve a kind, for the refusal
    tasks: ClassVar[frozenset[Task]] = frozenset({"classification"})  # what its models may predict
    balances: ClassVar[bool] = False  # whether nodes' training follows train.class_weights and train.sampling
    own_loop: ClassVar[bool] = False  # whether nodes train without `Client.train`, and so without parts of [train]
    # whether the server's model needs no statistics of batch norm, so that train.batch_norm may be "local"
    own_statistics: ClassVar[bool] = False
    equal_models: ClassVar[bool] = False  # whether all nodes must have the same architecture
    global_model: ClassVar[bool] = False  # whether the server has a model; it starts from the run's fresh weights
    classifies: ClassVar[bool] = True  # whether the global model is a classifier of the run's architecture
    listed_models: ClassVar[bool] = False  # whether the server needs to know each node's architecture
    pooled: ClassVar[bool] = False  # whether the server needs the nodes' images, which only a simulation has
    weights: Tensors | None = field(default=None, init=False, repr=False)  # the global model, if the method has one
    prepared: set[int] = field(default_factory=set, init=False, repr=False)  # nodes that have finished `prepare_nodes`

    def __init_subclass__(cls) -> None:
        """A class with a client half of its own says itself what it serves: it inherits no `tasks`."""
        super().__init_subclass__()
        if "client" in cls.__dict__:
            cls.tasks = cls.__dict__.get("tasks", Strategy.tasks)
            cls.balances = cls.__dict__.get("balances", Strategy.balances)
            cls.own_statistics = cls.__dict__.get("own_statistics", Strategy.own_statistics)

    def layers(self) -> Sequence[Strategy]:
        """Return this strategy and those that it wraps, outermost first. The last one has the client half."""
        return [self]

    def client_class(self) -> type[Client]:
        """Return the client half: by default the class attribute `client`."""
        return self.client

    def check(self, environment: Environment) -> None:
        """Raise InputError if the method cannot run with this config and data. Called before anything runs."""

    def prepare_nodes(self, federation: Round) -> None:
        """Ask the cohort for what a node does once, before its first round, for example pre-train.

        The cohort is all nodes before round 1. In a later round it is the nodes of the round's cohort that have not
        finished this: nodes that join late, of which a reply was refused, or that have lost their state. Nodes that
        fail take no part in that round, and are asked again in their next one.
        """

    def prepare(self, federation: Round) -> None:
        """Prepare the server before round 1, after `prepare_nodes`; the cohort is all nodes."""

    @abstractmethod
    def run_round(self, federation: Round) -> None:
        """Run one round: the method itself."""

    def evaluation(self, federation: Round) -> Payload | dict[int, Payload]:
        """Return the payload with which the `federation.measured` nodes are measured: by default the global model."""
        return Payload(weights=self.weights or {})

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the server's models, which are measured on the global test set. By default `weights`, if any.

        If there are several, `global/accuracy` and `global/loss` are their means, and `global_<number>` has the metrics
        of each.
        """
        return [(0, self.weights)] if self.weights else []

    def module(self, environment: Environment, architecture: Architecture, weights: Tensors) -> nn.Module:
        """Return a new module of a model of this method: its output are logits, or features if it does not classify."""
        with default_stream(torch_stream(environment.config.seed, 0, "server", "model-object")):
            model = environment.new_model(architecture)
        fill(model, weights)
        return model.eval()

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return intermediate models that are measured too, by the scope of their metrics.

        For example, a wrapper returns its base's model before the refinement as `aggregated`: the metric is
        `aggregated/accuracy`.
        """
        return {}

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the metrics that the server measures: by default of its models on the global test set, if any."""
        environment = federation.environment
        test = environment.data.test
        if not environment.on_global_test:
            return {}
        scores = [environment.score(architecture, weights, test) for architecture, weights in self.global_models()]
        names = scores[0] if scores else {}
        metrics = {f"global/{name}": sum(score[name] for score in scores) / len(scores) for name in names}
        if len(scores) > 1:
            metrics |= {f"global_{i}/{name}": value for i, score in enumerate(scores) for name, value in score.items()}
        for scope, (architecture, weights) in self.stages().items():
            score = environment.score(architecture, weights, test)
            metrics |= {f"{scope}/{name}": value for name, value in score.items()}
        return metrics

    def initial_weights(self, environment: Environment) -> Tensors:
        """Return the first global model: by default fresh weights of the run's architecture."""
        return environment.initial_weights()

    def most_images(self, images: int, environment: Environment) -> int:
        """Return the largest number of images that a node with `images` images may report to have trained on."""
        return images

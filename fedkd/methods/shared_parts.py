"""Methods whose nodes share a part of their models' weights and keep the rest, such as the last layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from ..core.client import MODEL, Client
from ..core.environment import Environment
from ..core.round import Round
from ..core.strategy import Strategy
from ..data.spec import ANY_KIND, ANY_TASK, Kind, Task
from ..errors import InputError
from ..messages.arrays import Tensors
from ..messages.merging import uniform_mean, weighted_mean
from ..messages.payload import Payload, expected_model
from ..models.adapter import own_path


def layers_of(model: nn.Module) -> list[list[str]]:
    """Return the layers of a model in its own order, each as the names of its tensors in `state_dict()`.

    A layer is a module with weights. One whose tensors are all vectors, such as a norm, belongs to the layer before it:
    ResNet-8 has 8 layers.
    """
    modules: dict[str, Tensors] = {}
    for name, tensor in model.state_dict().items():
        modules.setdefault(name.rpartition(".")[0], {})[name] = tensor
    layers: list[list[str]] = []
    for tensors in modules.values():
        if layers and all(tensor.dim() < 2 for tensor in tensors.values()):
            layers[-1] += tensors
        else:
            layers.append([*tensors])
    return layers


def parted(weights: Mapping[str, Tensor], shared: Collection[str]) -> tuple[Tensors, Tensors]:
    """Return the tensors with the names `shared`, and the others."""
    inside = {name: tensor for name, tensor in weights.items() if name in shared}
    return inside, {name: tensor for name, tensor in weights.items() if name not in shared}


class SharedPartClient(Client):
    """Trains the shared weights together with the node's own; keeps its own, and returns the shared ones."""

    def fit(self, request: Payload) -> Payload:
        """Train the received part and the kept one on the node's images; return the shared part of the result."""
        method: SharedPart = self.strategy
        model = self.load_parts(request.weights)
        loss = self.train_locally()
        shared, kept = parted(self.weights(), method.shared_names(model))
        self.keep(self.kept_as, kept)
        return Payload(weights=shared, numbers={"examples": len(self.data.labels), "loss": loss})

    def evaluate(self, request: Payload) -> Payload:
        """Measure the received part with the kept one: the node's personal model."""
        self.load_parts(request.weights)
        return super().evaluate(Payload())

    @property
    def kept_as(self) -> str:
        """Return the name in the node's state of the weights that it trains and does not share."""
        return MODEL

    def load_parts(self, shared: Tensors) -> nn.Module:
        """Return the node's model with these shared weights and those that it has kept, at first its initial ones."""
        initial = self.environment.initial_weights
        kept = self.recall(self.kept_as) or initial(self.environment.architecture_of(self.node), self.node)
        return self.load_model({**kept, **shared})


@dataclass(kw_only=True)
class SharedPart(Strategy):
    """The common part of FedPer and LG-FedAvg: the mean of the shared weights. A subclass writes `shared_names`.

    weighting: of nodes in the mean: `examples`, their numbers of images, or `uniform`. Buffers follow the weights that
    they belong to. Each node starts from its own random weights; the server's first shared part is of another draw.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = SharedPartClient
    weighting: Literal["examples", "uniform"] = "examples"
    shared: Tensors = field(default_factory=dict, init=False)

    @abstractmethod
    def shared_names(self, model: nn.Module) -> list[str]:
        """Return the names in `state_dict()` of the shared weights of a model."""

    def check(self, environment: Environment) -> None:
        """Raise InputError if nodes would share nothing or all, or if the shared parts of their models differ."""
        parts = []
        for number, architecture in enumerate(environment.config.model.architectures):
            model = environment.model(number)
            shared, kept = parted(model.state_dict(), self.shared_names(model))
            if not shared or not kept:
                layers = [own_path(model, layer[0]).rpartition(".")[0] for layer in layers_of(model)]
                verb, name = "share" if shared else "keep", environment.config.strategy.name
                raise InputError(
                    f"strategy.name = {name!r}: nodes would {verb} all {len(layers)} layers of the model "
                    f"{architecture.name!r} ({', '.join(layers)}); set fewer, so that they share a part and keep one."
                )
            parts.append({name: tuple(tensor.shape) for name, tensor in shared.items()})
            if parts[-1] != parts[0]:
                raise InputError(
                    f"model.names: the shared weights of all models must have the same names and shapes; those of "
                    f"{architecture.name!r} are {parts[-1]}, of the first model {parts[0]}."
                )

    def prepare(self, federation: Round) -> None:
        """Start with the shared part of fresh weights."""
        environment = federation.environment
        self.shared, _ = parted(environment.initial_weights(), self.shared_names(environment.model(0)))

    def run_round(self, federation: Round) -> None:
        """Send the shared part; average what the nodes have made of it."""
        merge = weighted_mean if self.weighting == "examples" else uniform_mean
        expect = expected_model(self.shared)
        merged = federation.ask("fit", Payload(weights=self.shared), expect=expect, merge=merge)
        self.shared = merged.weights
        federation.log("train_loss", merged.numbers["loss"])

    def evaluation(self, federation: Round) -> Payload:
        """Return the newest shared part: all nodes measure it with what they have kept."""
        return Payload(weights=self.shared)

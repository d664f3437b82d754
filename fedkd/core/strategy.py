"""The server half of a method: `Strategy`."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerBase

from fedkd.deployment.sites import Sites

from ..config import Architecture
from ..messages.arrays import Tensors, array_record, tensors_of
from ..messages.carrier import Carrier
from ..messages.payload import Payload
from ..streams import default_stream
from .client import Client
from .round import Round
from .round_loop import MOST_LISTED, MOST_MEASURED, Server, global_metrics
from .sampling import draw_nodes

if TYPE_CHECKING:
    from .environment import Environment


class Strategy(FlowerBase):
    """The server half of a method. Write `run_round`; where needed `prepare`, `check`, `state` and `restore`.

    A subclass is a keyword-only dataclass: its fields are the method's hyper-parameters, the keys of `[strategy]` in a
    config, checked by their annotations. Nodes make the same object, so a client reads them as `self.strategy.<name>`.
    """

    client: ClassVar[type[Client]] = Client
    equal_models: ClassVar[bool] = False  # whether all nodes must have one architecture
    global_model: ClassVar[bool] = False  # whether the server holds a model; it starts from the run's fresh weights
    classifies: ClassVar[bool] = True  # whether the global model is a classifier, one of the run's architecture
    listed_models: ClassVar[bool] = False  # whether the server needs to know each node's architecture
    pooled: ClassVar[bool] = False  # whether the server needs the nodes' images, which only a simulation has
    weights: Tensors | None = None  # the global model; None for a method that has none

    @property
    def innermost(self) -> Strategy:
        """Return the strategy whose hyper-parameters the client half reads: this one, unless it wraps another."""
        return self

    def client_class(self) -> type[Client]:
        """Return the client half: `client`, unless it depends on more than the class."""
        return self.client

    def check(self, environment: Environment) -> None:
        """Raise InputError where the method cannot run with this config and data. Called before anything runs."""

    def prepare(self, federation: Round) -> None:
        """Do what comes before round 1, such as pre-training; the cohort is all nodes."""

    @abstractmethod
    def run_round(self, federation: Round) -> None:
        """Run one round: the method itself."""

    def evaluation(self, nodes: list[int]) -> Payload | dict[int, Payload]:
        """Return what nodes need to measure themselves at the end of a round. By default the global model."""
        return Payload(weights=self.weights or {})

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the server's models, which are measured on the global test set. By default `weights`, if any.

        Of several, `global/accuracy` and `global/loss` are the means, and each has its own under `global_<number>`.
        """
        return [(0, self.weights)] if self.weights else []

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return models on the way to the global one that are measured too, by the scope of their metrics.

        A wrapper's base model before it was refined, as `aggregated`, gives `aggregated/accuracy`.
        """
        return {}

    def measure(self, federation: Round) -> dict[str, float]:
        """Return the metrics that the server measures: by default of its models on the global test set, if any."""
        environment = federation.environment
        if not len(environment.data.test.labels):
            return {}
        metrics = global_metrics(self.global_models(), environment)
        for scope, (architecture, weights) in self.stages().items():
            scores = environment.score(architecture, weights, environment.data.test)
            metrics |= {f"{scope}/{name}": value for name, value in scores.items()}
        return metrics

    def initial_weights(self, environment: Environment) -> Tensors:
        """Return the global model to start from: by default fresh weights of the run's architecture."""
        return environment.initial_weights()

    def state(self) -> Tensors:
        """Return what the server must keep to continue after a restart. By default the global model."""
        return dict(self.weights or {})

    def restore(self, state: Tensors) -> None:
        """Take back what `state` returned."""
        self.weights = dict(state) or None

    def most_images(self, images: int, environment: Environment) -> int:
        """Return how many images a node with so many of its own may say that it trained on."""
        return images

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        server: Server | None = None,
    ) -> Result:
        """Run the rounds: Flower's `start`, with the core's loop.

        `initial_arrays`: the global model to start from; empty for fresh weights of the run's seed. `evaluate_fn` gets
        the global model of rounds that are evaluated, beside the core's own evaluation, and fills the result's
        `evaluate_metrics_serverapp`. Timeouts and client settings come from the run's config.
        """
        if server is None:
            raise TypeError("A fedkd strategy is started by fedkd.run.make_server_app, which tells it of its Server.")
        environment, config = server.environment, server.environment.config
        result = Result()
        if initial_arrays:
            self.weights = tensors_of(initial_arrays)
        elif self.global_model and self.weights is None:
            self.weights = self.initial_weights(environment)
        carrier = grid if isinstance(grid, Carrier) else Sites(grid, server)
        for number in range(server.first_round, num_rounds + 1):
            due = number % config.evaluate.every == 0 or number == num_rounds
            begin = time.perf_counter()
            nodes = carrier.nodes()
            cohort = (
                draw_nodes(nodes, config.cohort, config.seed, number, "cohort") if number else self._prepared(nodes)
            )
            fraction = config.evaluate.fraction
            share = MOST_MEASURED if fraction is None else max(1, round(fraction * len(nodes)))
            measured = draw_nodes(nodes, share, config.seed, number, "evaluate") if due else []
            federation = Round(server, grid, carrier, number, nodes, cohort, measured)
            with default_stream(federation.stream("default")):
                (self.run_round if number else self.prepare)(federation)
                federation.close()
            trained = time.perf_counter()
            if due:
                wait_for_nodes = federation.measure(measured, self.evaluation(measured))
                federation.record.metrics.update(self.measure(federation))
                wait_for_nodes()
                if evaluate_fn is not None and self.global_models():
                    metrics = evaluate_fn(number, array_record(self.global_models()[0][1]))
                    if metrics is not None:
                        result.evaluate_metrics_serverapp[number] = metrics
            record = federation.record
            record.events = carrier.events()
            for metric, values in record.nodes.items():
                if metric in record.metrics:  # the server's own; no node may speak over it
                    continue
                record.metrics[metric] = sum(values[node] for node in sorted(values)) / len(values)
            record.seconds = {"round": trained - begin, "evaluation": time.perf_counter() - trained}
            server.on_round(record)
            if number % config.checkpoint.every == 0 or number == num_rounds:
                server.on_checkpoint(number)
        result.arrays = array_record(self.global_models()[0][1] if self.global_models() else {})
        return result

    def _prepared(self, nodes: Sequence[int]) -> list[int]:
        """Return whom `prepare` can ask: all nodes; of very many nobody, where the method has nothing to prepare."""
        return [] if len(nodes) > MOST_LISTED and type(self).prepare is Strategy.prepare else list(nodes)

    def summary(self) -> None:
        """Log nothing: the run folder's config.toml says it all."""

    # Flower's phases, which the core's loop does not use

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse: a fedkd strategy runs its rounds in `run_round`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse, like `configure_train`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Refuse, like `configure_train`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Refuse, like `configure_train`."""
        raise TypeError(f"{type(self).__name__} runs its rounds in run_round, not in Flower's four phases.")

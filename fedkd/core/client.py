"""The client half of a method: `Client`, one method for each request."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from ..config import AnyOptimizer, TrainConfig
from ..data.samples import Samples
from ..learning.evaluation import Prediction, measured
from ..learning.training import (
    LOSSES,
    LocalTraining,
    Loss,
    ModelLoss,
    OfOutputs,
    Own,
    chances_of,
    cross_entropy,
    half_of,
    label_loss,
    label_weights,
    of_labels,
    refuse_no_batch,
)
from ..messages.arrays import Tensors, array_record, is_finite, on_cpu, tensors_of
from ..messages.metric_names import MAIN, belongs_to, checked_metric
from ..messages.payload import Payload
from ..models.build import fill, fresh_statistics
from ..streams import torch_stream
from .environment import Environment
from .sampling import sample_epochs

Kind = TypeVar("Kind")
MODEL = "model"  # where a node's state keeps its personal model
STATISTICS = "batch_norm"  # its own running statistics, with train.batch_norm = "local"
_PARTICIPATION = "participation"  # the last two rounds in which it has trained
_EPOCH = "epoch"  # the images that are left of an epoch, with train.continue_epoch


class Client:
    """The client half of a strategy: subclass it with one method for each request, `def name(self, request: Payload)`.

    A method that takes exactly `request` answers the server's `ask("name", ...)` and returns a Payload. Each request
    gets a new object. `self.state` (Flower's context of the node) lasts between requests: write it with `keep` or
    `keep_model`, read it with `recall`. A request's changes to the state count once the server has accepted the reply;
    they are lost if the request raises an error, or if its reply is refused, late or lost.
    """

    reports: ClassVar[tuple[str, ...]] = (
        "personal/loss",
        "personal_validation/loss",
        "personal/mse",
        "personal_validation/mse",
        *(
            f"{scope}/{name}"
            for scope in ("personal", "personal_validation", "personal_global_test", "personal_after_fit")
            for name in MAIN
        ),
    )  # the metrics that a node may report; a subclass adds its own

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
        self.strategy: Any = layers[-1]  # the strategy whose hyper-parameters this client half reads
        self.layers = layers
        self.node = node
        self.state = state
        self.round = number
        self.action = action
        self.measured = measured
        self.metrics: dict[str, float] = {}
        self.positions: Tensor | None = None  # in `data`, of the images of local training, with train.continue_epoch
        self._loaded = False  # whether the model has the weights of a request

    def layer(self, kind: type[Kind]) -> Kind:
        """Return the run's strategy of a class, such as the wrapper that extends this client half.

        Raises TypeError if there is none.
        """
        found = next((layer for layer in self.layers if isinstance(layer, kind)), None)
        if found is None:
            raise TypeError(f"The run's strategy contains no {kind.__name__}.")
        return found

    # The node's data

    @cached_property
    def data(self) -> Samples:
        """Return the node's training images."""
        return self.environment.data.train_of(self.node)

    @cached_property
    def test_data(self) -> Samples:
        """Return the node's test images, which follow its own label distribution."""
        return self.environment.data.test_of(self.node)

    @cached_property
    def validation_data(self) -> Samples | None:
        """Return the node's own validation images, on which it does not train; None if it has none."""
        held = self.environment.data.validation_of(self.node)
        return held if held is not None and len(held.labels) else None

    @property
    def labels(self) -> Tensor:
        """Return the labels of the node's training images: classes, N; or several labels or scaled targets, N x C."""
        return self.environment.preprocess.targets(self.data.labels)

    @property
    def public(self) -> Samples:
        """Return the public set. Use its labels only if `data.public.labelled` is true."""
        public = self.environment.data.public
        assert public is not None, "the strategy's check() asks for data.public"
        return public

    # Its randomness, its state

    def stream(self, purpose: str) -> torch.Generator:
        """Return the stream of this node and round for a purpose."""
        return torch_stream(self.environment.config.seed, self.round, self.node, f"{self.action}/{purpose}")

    def keep(self, name: str, tensors: Tensors) -> None:
        """Store named arrays in the node's state.

        Raises ValueError for values that are not finite: a node must not continue from a training that diverged.
        """
        for key, tensor in tensors.items():
            if not is_finite(tensor):
                raise ValueError(f"{name} {key!r} is not finite: local training has diverged, and is not kept")
        self.state[name] = array_record(tensors)

    def recall(self, name: str) -> Tensors | None:
        """Return the arrays that `keep` stored under this name in an earlier request, or None."""
        record = self.state.array_records.get(name)
        return None if record is None else tensors_of(record)

    # Its model

    @cached_property
    def model(self) -> nn.Module:
        """Return the node's model with its personal weights: those of an earlier request, or else its initial ones.

        All clients of a process share one object for each architecture; use `copy.deepcopy` for a second model.
        """
        architecture = self.environment.architecture_of(self.node)
        weights = self.recall(MODEL) or self.environment.initial_weights(architecture, self.node)
        model = self.environment.model(architecture)
        fill(model, weights)
        return model

    def load_model(self, weights: Tensors) -> nn.Module:
        """Return the node's model with these weights; with train.batch_norm = "local" with its own statistics."""
        model = self.environment.model(self.environment.architecture_of(self.node))
        fill(model, {**weights, **(self.recall(STATISTICS) or {})})
        self.__dict__["model"], self._loaded = model, True
        return model

    def weights(self) -> Tensors:
        """Return the model's weights and buffers as CPU tensors, to be sent: see `Environment.sent_names`."""
        state = self.model.state_dict()
        return on_cpu({name: state[name] for name in self.environment.sent_names(self.model)})

    def keep_model(self) -> None:
        """Store the model's weights in the node's state, as its personal model."""
        self.keep(MODEL, on_cpu(self.model.state_dict()))

    # Its work

    @property
    def settings(self) -> TrainConfig:
        """Return `[train]` with the learning rate of this round, or of the node's last participation.

        Its epochs are those that the node does in this round: see `faults.partial_work`.
        """
        config = self.environment.config
        settings = config.train
        if config.faults.partial_work:
            settings = settings.model_copy(update={"epochs": sample_epochs(config, self.round, self.node)})
        return settings.in_round(self.round if settings.lr_decay_by == "round" else self._last_participation())

    def _last_participation(self) -> int:
        """Return the last round before this one in which the node has trained; 1 if there is none."""
        before, last = self._participations()
        return before if last == self.round else last

    def _participations(self) -> tuple[int, int]:
        kept = self.recall(_PARTICIPATION)
        return (1, 1) if kept is None else (int(kept["rounds"][0]), int(kept["rounds"][1]))

    def train(
        self,
        data: Samples,
        targets: Tensor,
        *,
        purpose: str,
        epochs: int | None = None,
        batch_size: int | None = None,
        optimizer: AnyOptimizer | None = None,
        loss: Loss | None = None,
        augment: bool = True,
        beside: nn.Module | None = None,
        chances: Tensor | None = None,
        positions: Tensor | None = None,
        corrections: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Train the model on images and their targets; return the mean loss of the last epoch.

        Arguments that are not given come from `[train]`, the loss from the task of the data. `purpose` names the random
        stream of the shuffles. Without `augment` the images are not augmented; use this for targets that were computed
        on the original images. `beside`: a module of the loss, which the same optimiser trains too. `chances`,
        `positions`: see `training.train`. `corrections`: see `LocalTraining`. Raises ValueError for a training of
        `train.steps` without `positions` if `train.continue_epoch` is set: it would begin anew.
        """
        settings = self.settings
        if settings.continue_epoch and epochs is None and positions is None:
            raise ValueError("train.continue_epoch: this method's training cannot go on where it stopped; remove it")
        if loss is None:
            task = self.environment.data.spec.task
            loss = cross_entropy if task == "classification" else ModelLoss(LOSSES[task])
        if settings.batch_norm == "reset":
            fill(self.model, {**self.model.state_dict(), **fresh_statistics(self.model)})
        value: float = self.environment.do(
            LocalTraining(
                self.model,
                data,
                targets,
                epochs=epochs if epochs is not None else settings.epochs,
                batch_size=batch_size or settings.batch_size,
                optimizer=optimizer or settings.optimizer,
                preprocess=self.environment.preprocess,
                order=self.stream(purpose),
                steps=settings.steps if epochs is None else None,
                clip=settings.clip,
                loss=loss,
                augment=augment,
                beside=beside,
                half=half_of(settings),
                chances=chances,
                schedule=settings.within_round,
                drop_last=settings.drop_last,
                positions=positions,
                corrections=corrections,
            )
        )
        self._keep_training()
        return value

    def _keep_training(self) -> None:
        """Keep what the node's next training reads: its round, and its statistics if they are its own."""
        settings = self.environment.config.train
        if settings.lr_decay_by == "participation" and self._participations()[1] != self.round:
            self.keep(_PARTICIPATION, {"rounds": torch.tensor([self._participations()[1], self.round])})
        if settings.batch_norm == "local" and self._loaded:
            state = self.model.state_dict()
            self.keep(STATISTICS, on_cpu({name: state[name] for name in fresh_statistics(self.model)}))

    def train_locally(
        self,
        loss: Loss = cross_entropy,
        optimizer: AnyOptimizer | None = None,
        corrections: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Train the model on the node's own labelled images as `[train]` says; return the mean loss of the last epoch.

        If `loss` is, or has, the cross-entropy of labels, it becomes what the task and `train.class_weights` ask for.
        Reports `personal_after_fit/accuracy` if the server wants this node's metrics.
        """
        self.positions = self._next_positions() if self.settings.continue_epoch else None
        value = self.train(
            self.data,
            self.labels,
            purpose="local-training",
            loss=self._of_task(loss),
            optimizer=optimizer,
            chances=chances_of(self.settings, self.data.labels, len(self.environment.data.classes)),
            positions=self.positions,
            corrections=corrections,
        )
        self.measure("personal_after_fit")
        return value

    def _next_positions(self) -> Tensor:
        """Return the positions of the images of all steps: the rest of the node's epoch, then further epochs.

        Keeps what is left of the last one.
        """
        settings, count = self.settings, len(self.data.labels)
        refuse_no_batch(settings.steps, count, settings.batch_size, drop_last=True)
        need = (settings.steps or 0) * settings.batch_size
        kept, order = self.recall(_EPOCH), self.stream("epochs")
        found = torch.empty(0, dtype=torch.int64) if kept is None else kept["left"]
        if len(found) and int(found.max()) >= count:  # the node's data have changed
            found = found[:0]
        while len(found) < need:
            epoch = torch.randperm(count, generator=order)[: count - count % settings.batch_size]
            found = torch.cat([found, epoch])
        self.keep(_EPOCH, {"left": found[need:].clone()})
        return found[:need]

    @property
    def of_labels(self) -> OfOutputs:
        """Return the loss of the node's labels, by the task and `train.class_weights`."""
        return of_labels(self.settings, self.environment.data.spec.task)

    @property
    def label_weights(self) -> Own:
        """Return the tensors that `of_labels` reads."""
        classes, device = len(self.environment.data.classes), self.environment.device
        return label_weights(self.settings, self.data.labels, classes, device)

    def _of_task(self, loss: Loss) -> Loss:
        if self.of_labels is label_loss:
            return loss
        if loss is cross_entropy:
            return ModelLoss(self.of_labels, own=self.label_weights)
        if isinstance(loss, ModelLoss) and loss.of_outputs is label_loss:
            return dataclasses.replace(loss, of_outputs=self.of_labels, own={**loss.own, **self.label_weights})
        return loss

    def predict(self, data: Samples) -> Tensor:
        """Return the model's logits, N x C, in the order of the images, in eval mode."""
        return self.environment.do(Prediction(self.model, data, self.environment.preprocess))

    def features(self, data: Samples) -> Tensor:
        """Return the model's features, N x D, in the order of the images, in eval mode."""
        return self.environment.do(Prediction(self.model, data, self.environment.preprocess, features=True))

    # Its metrics

    def report(self, metric: str, value: float) -> None:
        """Report a metric, named `scope/metric`, of this node in this round, if the server wants its metrics.

        Raises ValueError for a name that is not in `reports`, a name that only the server reports, a value that is not
        a finite number, and a name of another request: `personal` of `evaluate`, `personal_after_...` of others.
        """
        if metric not in self.reports:
            raise ValueError(f"metric {metric!r} is not declared: add it to {type(self).__name__}.reports")
        if not belongs_to(metric, self.action):
            raise ValueError(f"metric {metric!r} cannot be reported by {self.action!r}")
        number = checked_metric(metric, value)
        if self.measured:
            self.metrics[metric] = number

    def measure(self, scope: str) -> None:
        """Report the main metric of the current model on the node's test images, if it has any and the server wants it.

        It is `scope/accuracy`, or by the task `scope/macro_f1` or `scope/mae`.
        """
        if self.measured and len(self.test_data.labels):
            self._report_main(scope, self.score(self.test_data))

    def _report_main(self, scope: str, scores: dict[str, float]) -> None:
        name = next(name for name in MAIN if name in scores)
        self.report(f"{scope}/{name}", scores[name])

    def _report_all(self, scope: str, scores: dict[str, float]) -> None:
        for name, value in scores.items():
            if name != "r2":  # a mean of it over nodes says nothing
                self.report(f"{scope}/{name}", value)

    def score(self, data: Samples) -> dict[str, float]:
        """Return `accuracy` (a fraction) and `loss` of the model on labelled images; of other tasks see `measured`."""
        outputs, codec = self.predict(data), self.environment.data.codec
        if codec.spec.task != "classification" and not is_finite(outputs):
            raise ValueError("the model's outputs are not finite: training has diverged")
        return measured(outputs, data, codec)

    def evaluate(self, request: Payload) -> Payload:
        """Answer the core's request at the end of a round: report the metrics of the node's model.

        If the request contains weights, this is the global model. Otherwise it is the personal model.
        """
        if request.weights:
            self.load_model(request.weights)
        if len(self.test_data.labels):
            self._report_all("personal", self.score(self.test_data))
        if not request.weights and self.environment.on_global_test:  # the server measures the global model
            self._report_main("personal_global_test", self.score(self.environment.data.test))
        if self.validation_data is not None:
            self._report_all("personal_validation", self.score(self.validation_data))
        return Payload()


class GlobalModelClient(Client):
    """The client half of methods that average weights: it loads the global model, trains it and returns it."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights on the node's images; return the new ones, `examples` and `loss`."""
        self.load_model(request.weights)
        loss = self.train_locally(self.local_loss(), self.local_optimizer())
        return Payload(weights=self.weights(), numbers={"examples": len(self.data.labels), "loss": loss})

    def local_loss(self) -> Loss:
        """Return the loss of local training. When it is called, the model has the global weights."""
        return cross_entropy

    def local_optimizer(self) -> AnyOptimizer:
        """Return the optimiser of local training."""
        return self.settings.optimizer


def actions(client: type[Client]) -> list[str]:
    """Return the names of the requests that a client class answers: its methods that take exactly `request`."""
    return [
        name
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if not name.startswith("_") and list(inspect.signature(method).parameters) == ["self", "request"]
    ]

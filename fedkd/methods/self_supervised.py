"""The common part of self-supervised bases: the encoder, views, local training without labels, and the probes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import Architecture, Count, Whole
from ..core.client import Client
from ..core.environment import Environment
from ..core.round import Round
from ..core.strategy import Strategy
from ..data.federated_data import FederatedData
from ..data.samples import Samples
from ..data.spec import ANY_KIND, Kind
from ..errors import InputError
from ..learning.batches import shuffled
from ..learning.contrast import ENCODER, AfterStep, Batch, ContrastiveLoss, ContrastiveTraining, Kept
from ..learning.losses import nt_xent
from ..learning.optimizers import make_optimizer
from ..learning.probes import linear_probe, mean_angle, nearest_neighbours
from ..learning.views import Augmentation, View, views_of
from ..messages.arrays import Tensors, copied
from ..messages.payload import Payload
from ..models.build import fill
from ..streams import default_stream, torch_stream

_LOCAL = "local"

_EVALUATION_BATCH = 500

_POOLED_TEMPERATURE = 0.1

_SEMI_BATCH = 128

_MAPPED = 500  # test images in the feature map


# (networks, batch, kept, the encoder's projections of the two views, B x width each) -> scalar
Contrast = Callable[[nn.ModuleDict, Batch, Kept, Tensor, Tensor], Tensor]


class Encoder(nn.Module):
    """A backbone of `[model]` without its classifier, a projection head, and named prediction heads on top of it.

    Heads: Linear(D, width) - ReLU - Linear(width, width), without batch norm (Han et al., 2022, their code).
    """

    def __init__(self, model: nn.Module, width: int, predictors: tuple[str, ...]) -> None:
        super().__init__()
        inputs = cast(nn.Linear, model.classifier).in_features
        model.classifier = nn.Identity()
        self.feature_width = inputs
        self.backbone = model
        self.projector = _head(inputs, width)
        self.predictors = nn.ModuleDict({name: _head(width, width) for name in predictors})

    def features(self, images: Tensor) -> Tensor:
        """Return the backbone's features h, B x D."""
        return cast(Callable[[Tensor], Tensor], self.backbone.features)(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return projections P, B x width."""
        projected: Tensor = self.projector(self.features(images))
        return projected


def _head(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))


def whole_batches(count: int, size: int, order: torch.Generator) -> Iterator[np.ndarray]:
    """Yield shuffled batches of positions without end. The last images of an epoch that do not fill a batch are left
    out. If there are fewer images than the batch size, all of them are one batch.
    """
    size = min(size, count)
    while True:
        shuffled = torch.randperm(count, generator=order).numpy()
        for start in range(0, count - size + 1, size):
            yield shuffled[start : start + size]


def two_views(networks: nn.ModuleDict, batch: Batch, kept: Kept, *, contrast: Contrast) -> Tensor:
    """Return a base's loss of a batch, from one forward pass of both views."""
    first, second = networks[ENCODER](torch.cat([batch["first"], batch["second"]])).chunk(2)
    return contrast(networks, batch, kept, first, second)


class SelfSupervisedClient(Client):
    """Trains the encoder on views of its images. A base implements `contrast`. Labels are never read.

    `alone_because`: why clients of this base cannot train in one step.
    """

    alone_because: ClassVar[str | None] = None
    reports: ClassVar[tuple[str, ...]] = (*Client.reports, "drift/feature_angle", "drift/projection_angle")

    @property
    def method(self) -> SelfSupervised:
        """Return the base's hyper-parameters."""
        strategy: SelfSupervised = self.strategy
        return strategy

    def fit(self, request: Payload) -> Payload:
        """Train the received encoder on whole batches of `[train]` size; return it, `examples` and `loss`."""
        encoder = self.method.encoder(self.environment)
        encoder.load_state_dict(request.weights)
        self.begin(encoder)
        settings = self.settings
        loss = self.environment.do(
            ContrastiveTraining(
                self.networks,
                self.batches,
                batch_size=self.batch_size,
                steps=settings.steps or settings.epochs * self.batches_in_epoch,
                loss=self.loss(),
                after_step=self.after_step(),
                kept=self.kept,
                optimizer=settings.optimizer,
                clip=settings.clip,
                preprocess=self.environment.preprocess,
                alone_because=self.alone_because,
                schedule=settings.within_round,
            )
        )
        self.end(encoder)
        weights = copied(encoder.state_dict())
        if self.measured:
            self.keep(_LOCAL, weights)
        return Payload(weights=weights, numbers={"examples": len(self.data.labels), "loss": loss})

    @property
    def batch_size(self) -> int:
        """Return the size of each batch: that of `[train]`, or all images if there are fewer."""
        return min(self.settings.batch_size, len(self.data.labels))

    @property
    def batches_in_epoch(self) -> int:
        """Return the number of whole batches of an epoch."""
        return len(self.data.labels) // self.batch_size

    def begin(self, encoder: Encoder) -> None:
        """Prepare local training; the encoder has the received weights. A base adds its other networks, and what its
        loss keeps.
        """
        self.networks = nn.ModuleDict({ENCODER: encoder})
        self.kept: Kept = {}

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the round from its first, without end: `positions` of B images, `first`, `second`: a
        view of each.
        """
        images = self.data.inputs
        self.views, self.make_views = self.stream("views"), self.method.views(self.environment, images)
        for chosen in whole_batches(len(images), self.settings.batch_size, self.stream("shuffle")):
            first, second = (make(images[chosen], self.views) for make in self.make_views)
            yield {"positions": torch.from_numpy(chosen), "first": first, "second": second}

    def view(self, images: np.ndarray) -> Tensor:
        """Return a first view of each sample, from the round's stream of views."""
        return self.make_views[0](images, self.views)

    def loss(self) -> ContrastiveLoss:
        """Return the loss of local training, for `ContrastiveTraining`."""
        return partial(two_views, contrast=self.contrast())

    def contrast(self) -> Contrast:
        """Return the base's loss of projections: a function of its module, or `functools.partial` of one."""
        raise NotImplementedError

    def after_step(self) -> AfterStep | None:
        """Return what is done after each optimiser step, such as the update of a target network."""
        return None

    def end(self, encoder: Encoder) -> None:
        """Do the work after local training, such as storing the node's state."""

    def evaluate(self, request: Payload) -> Payload:
        """Report the angle between the features of the node's model and of the new global model, in degrees, on the
        global test images.
        """
        local = self.recall(_LOCAL)
        if local is not None:
            del self.state[_LOCAL]
            test, method = self.environment.data.test, self.method
            if not len(test.labels):  # a real site does not have the global test images
                return Payload()
            mine = method.embeddings(self.environment, local, test)
            theirs = method.embeddings(self.environment, request.weights, test)
            for name, a, b in zip(("feature", "projection"), mine, theirs, strict=True):
                self.report(f"drift/{name}_angle", mean_angle(a, b))
        return Payload()


@dataclass(kw_only=True)
class SelfSupervised(Strategy):
    """The common part of the bases. The server averages encoder and heads as FedAvg, and measures frozen features.

    width: of the heads' outputs (256). aug: of views, see `fedkd.learning.views`. pooled_steps: steps of SimCLR on the
    images of all nodes together before round 1, for experiments that need a common start that is not random; no real
    federation can do this. probe_epochs: of the linear probe (100 in the papers). The probes train on
    `data.validation`, the server's own labelled images; without it on all training images, as in the papers.
    semi_epochs: of fine-tuning on 1 % and 10 % of these images (200 in the papers; 0 by default, because it costs more
    than training).
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND - {"array"}
    client: ClassVar[type[Client]] = SelfSupervisedClient
    classifies: ClassVar[bool] = False
    own_loop: ClassVar[bool] = True
    predictors: tuple[str, ...] = field(default=(), init=False)  # prediction heads of the base and of a wrapper
    width: Count = 256
    aug: Augmentation = "auto"
    pooled_steps: Whole = 0
    semi_epochs: Whole = 0
    probe_epochs: Count = 100

    def check(self, environment: Environment) -> None:
        """Raise InputError for models whose features have no known width, and for too small data or batches."""
        super().check(environment)
        name, data = environment.config.strategy.name, environment.data
        if not isinstance(environment.model(0).classifier, nn.Linear):
            raise InputError(f"strategy {name} needs a model whose classifier is one linear layer.")
        self.views(environment, data.train.inputs[:1])  # raises InputError for views of another kind of samples
        if environment.config.train.batch_size < 2:
            raise InputError(f"train.batch_size = 1: strategy {name} compares the images of a batch: set 2 or more.")
        if environment.config.data.sites is not None:
            self._check_sites(name, data)
            return
        if self.pooled_steps:
            data.pooled()
        sizes = data.train_parts.lengths()
        if sizes.min() < 2:
            raise InputError(
                f"data.partition: node {int(sizes.argmin())} has only one image; strategy {name} needs minimum = 2."
            )

    def _check_sites(self, name: str, data: FederatedData) -> None:
        """Raise InputError for real sites if the server lacks images for the probes, or needs the sites' images."""
        if data.validation is None or not len(data.test.labels):
            raise InputError(
                f"data.sites: {name} measures features on labelled images of the server's own: set "
                "data.sites.server, a named set, and data.validation."
            )
        if self.pooled_steps:
            raise InputError(
                f"strategy.pooled_steps = {self.pooled_steps}: the server does not have the sites' images; set 0."
            )

    def encoder(self, environment: Environment) -> Encoder:
        """Return this process's encoder object; its weights are those of its last use."""

        def build() -> nn.Module:
            return Encoder(environment.new_model(0), self.width, self.predictors)

        return cast(Encoder, environment.kept_object(f"encoder/{self.width}/{self.predictors}", build))

    def views(self, environment: Environment, pool: np.ndarray) -> tuple[View, View]:
        """Return the functions that make views of this run's samples; `pool`: all raw samples that may be mixed."""
        return views_of(self.aug, environment.config.data.set_names, environment.preprocess, pool)

    def initial_weights(self, environment: Environment) -> Tensors:
        """Return a fresh encoder's weights."""
        with default_stream(torch_stream(environment.config.seed, 0, "server", "initial-weights")):
            encoder = Encoder(environment.new_model(0), self.width, self.predictors)
        return copied(encoder.state_dict())

    def prepare(self, federation: Round) -> None:
        """Train the common start on the pooled images, without labels, if `pooled_steps` is set.

        SimCLR at temperature 0.1 for every base; prediction heads keep their initial weights.
        """
        if not self.pooled_steps:
            return
        assert self.weights is not None
        environment, settings = federation.environment, federation.config.train.in_round(1)
        encoder = self.encoder(environment)
        encoder.load_state_dict(self.weights)
        encoder.train()
        optimizer = make_optimizer(encoder, settings.optimizer)
        pooled = environment.data.train.take(environment.data.pooled()).inputs
        make_views = self.views(environment, pooled)
        views, order = federation.stream("pooled-views"), federation.stream("pooled-shuffle")
        batches = whole_batches(len(pooled), settings.batch_size, order)
        for _ in federation.track("pooled start", range(self.pooled_steps)):
            chosen = pooled[next(batches)]
            both = torch.cat([make(chosen, views) for make in make_views])
            optimizer.zero_grad()
            first, second = encoder(both).chunk(2)
            nt_xent(first, second, _POOLED_TEMPERATURE).backward()
            if settings.clip is not None:
                torch.nn.utils.clip_grad_norm_(encoder.parameters(), settings.clip)
            optimizer.step()
        self.weights = copied(encoder.state_dict())

    def embeddings(self, environment: Environment, weights: Tensors, images: Samples) -> tuple[Tensor, Tensor]:
        """Return the same as `embeddings_of`, for an encoder with these weights."""
        encoder = self.encoder(environment)
        encoder.load_state_dict(weights)
        return self.embeddings_of(environment, encoder, images)

    @torch.no_grad()
    def embeddings_of(self, environment: Environment, encoder: Encoder, images: Samples) -> tuple[Tensor, Tensor]:
        """Return features, N x D, and projections, N x width, of images in their order, in eval mode, on the CPU."""
        encoder.eval()
        features, projections = [], []
        for start in range(0, len(images.labels), _EVALUATION_BATCH):
            h = encoder.features(environment.preprocess(images.inputs[start : start + _EVALUATION_BATCH]))
            features.append(h.cpu())
            projections.append(encoder.projector(h).cpu())
        return torch.cat(features), torch.cat(projections)

    def measure(self, federation: Round) -> dict[str, float]:
        """Return `probe/accuracy` and `knn/accuracy` of the global encoder's features."""
        assert self.weights is not None
        environment = federation.environment
        data, classes = environment.data, len(environment.data.classes)
        known = data.validation if data.validation is not None else data.train
        sets = []
        for images in (known, data.test):
            sets += [self.embeddings(environment, self.weights, images)[0], torch.from_numpy(images.labels)]
        features, labels, test_features, test_labels = sets
        probe = linear_probe(
            features, labels, test_features, test_labels, classes, federation.stream("probe"), epochs=self.probe_epochs
        )
        metrics = {
            "probe/accuracy": probe,
            "knn/accuracy": nearest_neighbours(features, labels, test_features, test_labels, classes),
        }
        if self.semi_epochs:
            for percent in (1, 10):
                accuracy = self._fine_tune(federation, known, percent)
                metrics |= {} if accuracy is None else {f"semi_{percent}/accuracy": accuracy}
        if min(test_features.shape) > 1 and bool(torch.isfinite(test_features).all()):
            federation.log("feature_map", feature_map(test_features, data.test.labels))
        return metrics

    def _fine_tune(self, federation: Round, known: Samples, percent: int) -> float | None:
        """Return the test accuracy of the whole encoder after fine-tuning on `percent` of the images of each class.

        The protocol of FedU2's and SSD's code: SGD with momentum 0.9, learning rates 0.001 for the encoder and 0.3 for
        the classifier, batches of 128, `semi_epochs`. It measures the model after the last epoch (their code: the best
        model on the test set). None if there are fewer than two images.
        """
        assert self.weights is not None
        environment, stream = federation.environment, federation.stream(f"semi-{percent}")
        members = [np.flatnonzero(known.labels == label) for label in np.unique(known.labels)]
        few = [m[torch.randperm(len(m), generator=stream).numpy()][: max(1, len(m) * percent // 100)] for m in members]
        chosen = known.take(np.sort(np.concatenate(few)))
        if len(chosen.labels) < 2:
            return None
        encoder = copy.deepcopy(self.encoder(environment))
        encoder.load_state_dict(self.weights)
        with default_stream(stream):
            classifier = nn.Linear(encoder.feature_width, len(environment.data.classes))
        classifier.to(environment.device)
        slow, fast = list(encoder.backbone.parameters()), list(classifier.parameters())
        groups: list[dict[str, Any]] = [{"params": slow}, {"params": fast, "lr": 0.3}]
        optimizer = torch.optim.SGD(groups, lr=0.001, momentum=0.9)
        data, labels = environment.data, torch.from_numpy(chosen.labels).to(environment.device)
        make_view, _ = views_of("fine_tuning", data.domain_names, environment.preprocess, chosen.inputs)
        encoder.train()
        for _ in federation.track(f"fine-tuning on {percent} %", range(self.semi_epochs)):
            for part in shuffled(len(labels), _SEMI_BATCH, stream):
                optimizer.zero_grad()
                images = make_view(chosen.inputs[part.numpy()], stream)
                F.cross_entropy(classifier(encoder.features(images)), labels[part]).backward()
                optimizer.step()
        features = self.embeddings_of(environment, encoder, environment.data.test)[0]
        with torch.no_grad():
            found = classifier.cpu()(features).argmax(1)
        return float((found == torch.from_numpy(environment.data.test.labels)).double().mean())

    def module(self, environment: Environment, architecture: Architecture, weights: Tensors) -> nn.Module:
        """Return the backbone, whose output are features."""
        with default_stream(torch_stream(environment.config.seed, 0, "server", "model-object")):
            encoder = Encoder(environment.new_model(architecture), self.width, self.predictors)
        fill(encoder, weights)
        return encoder.backbone.eval()

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return no models, because an encoder does not classify."""
        return []


def feature_map(features: Tensor, labels: np.ndarray) -> dict[str, list[Any]]:
    """Return the first two principal components of up to 500 images' features, and their labels."""
    some = np.linspace(0, len(labels) - 1, min(len(labels), _MAPPED)).round().astype(int)
    points = PCA(2, svd_solver="full").fit_transform(features[some].double().numpy())
    return {"points": points.round(4).tolist(), "labels": labels[some].tolist()}


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Set each of the target's parameters to momentum * itself + (1 - momentum) * the source's."""
    for mine, other in zip(target.parameters(), source.parameters(), strict=True):
        mine.copy_(mine.lerp(other, 1 - momentum))  # vmap has no rule for `lerp_`

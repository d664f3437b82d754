"""FedProto: clients exchange the mean features of each class, and need no public data.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: FedProto: Federated Prototype Learning across Heterogeneous Clients, AAAI 2022,
arXiv:2105.00243, Algorithm 1 and equations 3 to 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    Architecture,
    Classifier,
    ClassMeans,
    Client,
    Environment,
    InputError,
    Kind,
    Loss,
    ModelLoss,
    NotNegative,
    Outputs,
    Own,
    Payload,
    Round,
    Samples,
    Strategy,
    Tensors,
    expected_means,
    mean_over_nodes,
)

_NEVER = -1e6  # the logit of a class without a prototype


class FedProtoClient(Client):
    """Trains with a loss that pulls its features towards the global prototypes; predicts the nearest prototype."""

    reports: ClassVar[tuple[str, ...]] = (*Client.reports, "personal_classifier/accuracy")

    def fit(self, request: Payload) -> Payload:
        """Train, keep the model; return the mean features and the number of the node's images of each class."""
        method, means = cast(FedProto, self.strategy), ClassMeans(len(self.environment.data.classes))
        loss = prototype_loss(request, method.prototype_weight)
        if method.means_over == "training":
            self.train_locally(collecting(loss, means, self._batches_before_the_last_epoch()))
        else:
            self.train_locally(loss)
            means.add(self.features(self.data), self.labels)
        self.keep_model()
        return means.payload("prototypes", counts=True)

    def _batches_before_the_last_epoch(self) -> int:
        images, settings = len(self.data.labels), self.settings
        in_an_epoch = settings.model_copy(update={"epochs": 1, "steps": None}).batches(images)
        return settings.batches(images) - in_an_epoch

    def evaluate(self, request: Payload) -> Payload:
        """Report the accuracy by the nearest prototype and by the classifier; before round 1 only the latter."""
        if len(self.test_data.labels):
            own = self.score(self.test_data)
            self.report("personal/loss", own["loss"])
            self.report("personal_classifier/accuracy", own["accuracy"])
        scopes = [("personal", self.test_data)]
        if self.environment.on_global_test:
            scopes.append(("personal_global_test", self.environment.data.test))
        if self.validation_data is not None:
            scopes.append(("personal_validation", self.validation_data))
            self.report("personal_validation/loss", self.score(self.validation_data)["loss"])
        for scope, images in scopes:
            if not len(images.labels):  # a real site does not have the global test images
                continue
            if request.prototypes:
                prototypes, present = request.prototypes["global"], request.statistics["present"].bool()
                if scope != "personal_global_test":
                    present = self._predicted(present)
                self.report(f"{scope}/accuracy", self._accuracy(images, prototypes, present))
            else:
                self.report(f"{scope}/accuracy", self.score(images)["accuracy"])
        return Payload()

    def _predicted(self, present: Tensor) -> Tensor:
        """Return the classes that the node predicts for its own images, of those that have a prototype, C."""
        own = torch.bincount(torch.from_numpy(self.data.labels), minlength=len(present)) > 0
        found = present & own
        # if the cohorts so far had none of the node's classes, any prototype may be the nearest
        return found if cast(FedProto, self.strategy).inference == "own_classes" and found.any() else present

    def _accuracy(self, images: Samples, prototypes: Tensor, present: Tensor) -> float:
        found = nearest_prototype(self.features(images), prototypes, present)
        return float((found == torch.from_numpy(images.labels)).double().mean())


def prototype_loss(request: Payload, weight: float) -> ModelLoss:
    """Return CE + weight `prototype_distance` to the prototypes of a request; CE if it has none."""
    prototypes, present = request.prototypes.get("global"), request.statistics.get("present")
    if prototypes is None or present is None:
        return ModelLoss(features=True)
    return ModelLoss(partial(_pulled, weight=weight), own={"prototypes": prototypes, "present": present}, features=True)


def _pulled(outputs: Outputs, labels: Tensor, own: Own, frozen: Mapping[str, Outputs], weight: float) -> Tensor:
    distance = prototype_distance(outputs.features, labels, own["prototypes"], own["present"])
    return F.cross_entropy(outputs.logits, labels) + weight * distance


def collecting(loss: ModelLoss, means: ClassMeans, skipped: int) -> Loss:
    """Return a loss that also adds the features of its batches to `means`, but for those of the first `skipped`."""
    batches = count()

    def of_outputs(outputs: Outputs, labels: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
        if next(batches) >= skipped:
            means.add(outputs.features, labels)
        return loss.of_outputs(outputs, labels, own, frozen)

    def computed(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return replace(loss, of_outputs=of_outputs)(model, images, labels)

    return computed  # no ModelLoss: many clients cannot share a step that collects


def prototype_distance(features: Tensor, labels: Tensor, prototypes: Tensor, present: Tensor) -> Tensor:
    """Return the mean over images and dimensions of (phi(x) - P_y)^2 (the paper's regulariser).

    Features: B x D; labels: B; prototypes: C x D; `present`: which of them exist, C. An image whose class has no
    prototype adds 0 to the mean over all images.
    """
    known = present.to(features.device)[labels].to(features.dtype)
    distance = (features - prototypes.to(features.device)[labels]).square().mean(1)
    return (distance * known).mean()


def nearest_prototype(features: Tensor, prototypes: Tensor, present: Tensor) -> Tensor:
    """Return the class of the nearest prototype by L2 distance, B, of features B x D (the paper's inference).

    Prototypes: C x D; `present`: which of them exist, C.
    """
    distances = torch.cdist(features.double(), prototypes.double())
    return distances.masked_fill(~present, torch.inf).argmin(1)


@dataclass(kw_only=True)
class FedProto(Strategy):
    """FedProto (Tan et al., 2022); models may differ, but their features must have the same width.

    prototype_weight: lambda, of the mean squared distance to the prototype of the image's class (1 for MNIST, 0.1 for
    CIFAR-10 in the authors' code). It is a mean over dimensions, so the same lambda has less effect on wider features.
    weighting: of nodes in a global prototype: `examples`, their numbers of images of the class (equation 6, without its
    further division by the number of nodes, which would shrink prototypes), or `uniform` (the authors' code).
    means_over: a node's prototypes are means of the features of its images `after` training (Algorithm 1), or of the
    features as they pass by in `training`, in its last epoch, while the weights change and with dropout (the authors'
    code). With `train.steps` the last epoch is as many steps as an epoch has.
    inference: a node looks for the nearest prototype of its own images among `all` classes, or among the `own_classes`
    that it has in training (the authors' code); `personal_global_test/accuracy` is among all.

    `personal/accuracy` and `personal_global_test/accuracy` use the nearest prototype, `personal_classifier/accuracy`
    and `personal_after_fit/accuracy` the classifier. Classes without a prototype are never predicted.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    client: ClassVar[type[Client]] = FedProtoClient
    prototype_weight: NotNegative = 1.0
    weighting: Literal["examples", "uniform"] = "examples"
    means_over: Literal["after", "training"] = "after"
    inference: Literal["all", "own_classes"] = "all"
    prototypes: Tensor | None = field(default=None, init=False)
    present: Tensor | None = field(default=None, init=False)

    def check(self, environment: Environment) -> None:
        """Raise InputError for models whose features differ in width."""
        widths = [self._width(environment, n) for n in range(len(environment.config.model.architectures))]
        if len(set(widths)) > 1:
            found = ", ".join(
                f"{a.name} {w}" for a, w in zip(environment.config.model.architectures, widths, strict=True)
            )
            raise InputError(
                f"model.names: strategy fedproto needs features of one width, but they have {found}; set the width of "
                'the last hidden layer, such as { name = "mlp", hidden = [128, 64] } and { name = "cnn", hidden = 64 }.'
            )

    @staticmethod
    def _width(environment: Environment, architecture: int) -> int:
        model = cast(Classifier, environment.model(architecture).eval())
        with torch.no_grad():
            image = environment.data.form.example(1).to(environment.device)
            return int(model.features(image).shape[1])

    def run_round(self, federation: Round) -> None:
        """Send the global prototypes, collect the nodes' prototypes, average them by class."""
        environment = federation.environment
        expect = expected_means("prototypes", len(environment.data.classes), self._width(environment, 0), counts=True)
        means, weights = {}, {}
        for node, reply in federation.ask("fit", self._global_prototypes(), expect=expect):
            counts = reply.statistics["counts"]
            means[node] = reply.prototypes["means"]
            weights[node] = counts if self.weighting == "examples" else (counts > 0)
        new, present = mean_over_nodes(means, weights)
        if self.prototypes is not None and self.present is not None:  # keep those of classes that the cohort lacks
            new = torch.where(present[:, None], new, self.prototypes)
            present = present | self.present.bool()
        self.prototypes, self.present = new, present.to(torch.uint8)

    def evaluation(self, federation: Round) -> Payload:
        """Return the global prototypes, if there are any yet."""
        return self._global_prototypes()

    def module(self, environment: Environment, architecture: Architecture, weights: Tensors) -> nn.Module:
        """Return a model whose largest logit is the nearest prototype p: its head computes 2 p f - |p|^2 of features f.

        Raises InputError for a model whose head cannot compute this. Without prototypes it is the classifier.
        """
        model: nn.Module = super().module(environment, architecture, weights)
        if self.prototypes is None or self.present is None:
            return model
        head = model.classifier
        if not isinstance(head, nn.Linear) or head.bias is None:
            raise InputError(
                "fedproto predicts the nearest prototype; a model of it needs a head that is one linear layer with a "
                "bias."
            )
        present = self.present.bool()
        with torch.no_grad():
            head.weight.copy_(2 * self.prototypes * present[:, None])
            head.bias.copy_(torch.where(present, -self.prototypes.square().sum(1), _NEVER))
        return model

    def _global_prototypes(self) -> Payload:
        if self.prototypes is None or self.present is None:
            return Payload()
        return Payload(prototypes={"global": self.prototypes}, statistics={"present": self.present})

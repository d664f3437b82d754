"""FedProto: clients exchange the mean features of each class, and need no public data.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang: FedProto: Federated Prototype Learning across Heterogeneous Clients, AAAI 2022,
arXiv:2105.00243, Algorithm 1 and equations 3 to 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
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
        weight = cast(FedProto, self.strategy).prototype_weight
        self.train_locally(prototype_loss(request, weight))
        self.keep_model()
        means = ClassMeans(len(self.environment.data.classes))
        means.add(self.features(self.data), self.labels)
        return means.payload("prototypes", counts=True)

    def evaluate(self, request: Payload) -> Payload:
        """Report the accuracy by the nearest prototype and by the classifier; before round 1 only the latter."""
        if len(self.test_data.labels):
            own = self.score(self.test_data)
            self.report("personal/loss", own["loss"])
            self.report("personal_classifier/accuracy", own["accuracy"])
        scopes = [("personal", self.test_data), ("personal_global_test", self.environment.data.test)]
        if self.validation_data is not None:
            scopes.append(("personal_validation", self.validation_data))
            self.report("personal_validation/loss", self.score(self.validation_data)["loss"])
        for scope, images in scopes:
            if not len(images.labels):  # a real site does not have the global test images
                continue
            if request.prototypes:
                prototypes, present = request.prototypes["global"], request.statistics["present"].bool()
                self.report(f"{scope}/accuracy", self._accuracy(images, prototypes, present))
            else:
                self.report(f"{scope}/accuracy", self.score(images)["accuracy"])
        return Payload()

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

    `personal/accuracy` and `personal_global_test/accuracy` use the nearest prototype, `personal_classifier/accuracy`
    and `personal_after_fit/accuracy` the classifier. Classes without a prototype are never predicted.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    client: ClassVar[type[Client]] = FedProtoClient
    prototype_weight: NotNegative = 1.0
    weighting: Literal["examples", "uniform"] = "examples"
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

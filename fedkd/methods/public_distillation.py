"""Methods on the public set: nodes send their knowledge on its images and learn from targets on these images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import Count, NamedTable, Whole
from ..core.client import Client
from ..core.environment import Environment
from ..core.round import Round
from ..core.strategy import Strategy
from ..data.samples import Samples
from ..data.spec import ANY_KIND, Kind
from ..errors import InputError
from ..learning.losses import soft
from ..learning.training import Loss
from ..messages.arrays import Tensors
from ..messages.metric_names import MAIN
from ..messages.payload import ArraySpec, Expected, Payload
from .distillation_loss import Sends, check_loss, loss_towards, read_loss, with_labels

_SUBSET = "subset"
_FINGERPRINT = "transfer_set"
_PUBLIC_EPOCHS = 10  # of pre-training, if the config does not say
_log = logging.getLogger("fedkd")


class PublicSetClient(Client):
    """A client that sends its knowledge on the public set, and learns from targets on it. It has a personal model."""

    reports: ClassVar[tuple[str, ...]] = (
        *Client.reports,
        *(f"personal_after_distillation/{name}" for name in MAIN),
    )

    @property
    def transfer(self) -> PublicSetStrategy:
        """Return the hyper-parameters that all methods on the public set share."""
        strategy: PublicSetStrategy = self.strategy
        return strategy

    def subset(self, request: Payload, name: str = _SUBSET) -> Samples:
        """Return the public images at the request's indices, in their order; all images if it has no indices."""
        indices = request.indices.get(name)
        return self.public if indices is None else self.public.take(indices.numpy())

    def send_knowledge(self, knowledge: Tensor) -> Payload:
        """Return knowledge on the subset, P x C, and the fingerprint of this node's public set."""
        numbers = {_FINGERPRINT: float(self.environment.public_fingerprint)}
        return Payload(logits={"knowledge": knowledge.float()}, numbers=numbers)

    def soft_labels(self, images: Samples, temperature: float = 1.0) -> Tensor:
        """Return softmax(z / T) of the model on images, N x C, in eval mode; of other tasks see `soft`."""
        return soft(self.predict(images), self.environment.data.spec.task, temperature)

    def distil(self, images: Samples, targets: Tensor, loss: Loss) -> float:
        """Train the model towards targets on public images, without augmentation, with the strategy's settings.

        `loss`: the method's own, which `strategy.loss` replaces. Reports `personal_after_distillation/accuracy` if the
        server wants this node's metrics. Returns the mean loss of the last epoch.
        """
        if self.transfer.loss is not None:
            chosen = read_loss(self.transfer.loss, self.round)
            targets = with_labels(chosen, targets, torch.from_numpy(images.labels))
            loss = loss_towards(chosen, self.transfer.sends)
        value = self.train(
            images,
            targets,
            purpose="distillation",
            epochs=self.transfer.distil_epochs,
            batch_size=self.transfer.distil_batch_size,
            loss=loss,
            augment=False,
        )
        self.measure("personal_after_distillation")
        return value


@dataclass(kw_only=True)
class PublicSetStrategy(Strategy):
    """The common part of methods on the public set. Models may differ. Distillation never augments its images.

    subset_size: public images per round, drawn again in each round and sent as indices; by default all.
    distil_epochs, distil_batch_size: of the training towards the targets; it uses a new optimiser of `[train]`.
    loss: one of `fedkd.kd_losses` with its options, in place of the method's own loss of this training.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    subset_size: Count | None = None
    distil_epochs: Count = 1
    distil_batch_size: Count = 64
    loss: NamedTable | None = None

    @property
    def sends(self) -> Sends:
        """Return what targets on the public set are."""
        return "probabilities"

    def check(self, environment: Environment) -> None:
        """Raise InputError if there is no public set, it is too small, or has not what `loss` needs."""
        public, name = environment.data.public, environment.config.strategy.name
        if public is None:
            raise InputError(
                f"strategy {name} needs a public set: set data.public, such as public = {{ size = 2000 }}."
            )
        config = environment.config.data.public
        check_loss(self.loss, environment, self.sends, labelled=config is not None and config.labelled)
        if self.subset_size is not None and self.subset_size > len(public.labels):
            raise InputError(
                f"strategy.subset_size = {self.subset_size}: data.public.size is only {len(public.labels)}."
            )

    def size(self, environment: Environment) -> int:
        """Return the number of public images that a round uses."""
        assert environment.data.public is not None
        return self.subset_size or len(environment.data.public.labels)

    def draw_subset(self, federation: Round, name: str = _SUBSET) -> Tensors:
        """Return this round's indices into the public set, as a payload's `indices`; empty if all images are used."""
        if self.subset_size is None:
            return {}
        assert federation.environment.data.public is not None
        total = len(federation.environment.data.public.labels)
        order = torch.randperm(total, generator=federation.stream("transfer-subset"))
        return {name: order[: self.subset_size].int()}

    def expected(self, federation: Round, *, soft: bool) -> Expected:
        """Return the `Expected` of `PublicSetClient.send_knowledge`: knowledge, P x C, on the same public images.

        `soft`: whether the knowledge must be probabilities.
        """
        environment = federation.environment
        shape = (self.size(environment), len(environment.data.classes))
        fingerprint = float(environment.public_fingerprint)
        return Expected(
            logits={"knowledge": ArraySpec(shape, probabilities=soft)},
            numbers={_FINGERPRINT: (fingerprint, fingerprint)},
        )

    def ask_knowledge(self, federation: Round, action: str, payload: Payload, *, soft: bool) -> dict[int, Tensor]:
        """Ask the cohort for its knowledge; return it by node, P x C for each."""
        replies = federation.ask(action, payload, expect=self.expected(federation, soft=soft))
        return {node: reply.logits["knowledge"] for node, reply in replies}


@dataclass(kw_only=True)
class Pretraining(PublicSetStrategy):
    """Pre-training before round 1: on the labelled public set, then on the node's own images; 0 epochs skip it.

    public_epochs: None is 10 if the public set has labels, otherwise 0.
    """

    public_epochs: Whole | None = 0
    private_epochs: Whole = 0

    def check(self, environment: Environment) -> None:
        """Also raise InputError for pre-training on public images without labels."""
        super().check(environment)
        if self.public_epochs and not environment.data.public_labelled:
            raise InputError(
                f"strategy.public_epochs = {self.public_epochs}: the public set has no labels; "
                "set data.public.labelled = true, or public_epochs = 0."
            )

    def epochs_on_public(self, environment: Environment) -> int:
        """Return the number of epochs on the public set."""
        if self.public_epochs is None:
            return _PUBLIC_EPOCHS if environment.data.public_labelled else 0
        return self.public_epochs

    def prepare_nodes(self, federation: Round) -> None:
        """Pre-train the nodes' models."""
        epochs = self.epochs_on_public(federation.environment)
        if self.public_epochs is None and not epochs and federation.number == 0:
            skipped = (
                f"{federation.config.strategy.name}: no pre-training on the public set, because it has no labels; "
                "data.public.labelled = true gives it labels."
            )
            _log.warning(skipped)
            federation.log("skipped", skipped)
        if epochs or self.private_epochs:
            federation.ask("pretrain", expect=Expected())

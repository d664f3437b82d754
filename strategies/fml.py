"""FML: each client trains a private model and a shared meme model, which teach each other. Memes are averaged.

Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu: Federated Mutual Learning, 2020, arXiv:2006.16765; and the
authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    ANY_TASK,
    UNWEIGHTED,
    Architecture,
    Client,
    Environment,
    KDLoss,
    Kind,
    NamedTable,
    Payload,
    Round,
    Strategy,
    Task,
    Tensors,
    check_loss,
    expected_model,
    kl_divergence,
    make_optimizer,
    on_cpu,
    read_loss,
    train_as,
    weighted_mean,
)


class Pair(nn.Module):
    """The private model and the meme, trained on the same batches."""

    def __init__(self, private: nn.Module, meme: nn.Module) -> None:
        super().__init__()
        self.private = private
        self.meme = meme


class FMLClient(Client):
    """Keeps the private model; returns the meme."""

    def fit(self, request: Payload) -> Payload:
        """Train both models together on the node's images; keep the private model, return the meme."""
        method: FML = self.strategy
        meme = copy.deepcopy(self.environment.model(method.meme_architecture))
        meme.load_state_dict(request.weights)
        pair, task = Pair(self.model, meme), self.environment.data.spec.task
        distance = None if method.loss is None else read_loss(method.loss, self.round)

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            both = cast(Pair, model)
            return mutual_loss(
                both.private(images), both.meme(images), labels, method.alpha, method.beta, task, distance
            )

        value = train_as(
            self.settings,
            pair,
            self.data,
            preprocess=self.environment.preprocess,
            order=self.stream("local-training"),
            loss=loss,
            optimizer=make_optimizer(pair.private, self.settings.optimizer, pair.meme),  # clips each model separately
        )
        self.measure("personal_after_fit")
        self.keep_model()
        return Payload(weights=on_cpu(meme.state_dict()), numbers={"examples": UNWEIGHTED, "loss": value})


def mutual_loss(
    private: Tensor,
    meme: Tensor,
    labels: Tensor,
    alpha: float,
    beta: float,
    task: Task = "classification",
    distance: KDLoss | None = None,
) -> Tensor:
    """Return L_private + L_meme of the two models' logits, B x C each.

    L_private = alpha CE + (1 - alpha) KL(p_meme || p_private), L_meme = beta CE + (1 - beta) KL(p_private || p_meme).
    Each teacher is detached, so that each model gets only the gradient of its own loss. Of several labels, both terms
    are the mean binary cross-entropy, with the labels or sigmoid(teacher); of targets the mean squared difference.
    `distance`: of classes, in place of KL.
    """
    of_labels, of_teacher = _LOSSES[task]
    if distance is not None:
        of_teacher = partial(distance, labels=labels)
    for_private = alpha * of_labels(private, labels) + (1 - alpha) * of_teacher(private, meme)
    for_meme = beta * of_labels(meme, labels) + (1 - beta) * of_teacher(meme, private)
    return for_private + for_meme


def _binary(student: Tensor, teacher: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher.detach()))


def _squared(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher.detach())


_LOSSES: dict[Task, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "classification": (F.cross_entropy, kl_divergence),
    "multilabel": (F.binary_cross_entropy_with_logits, _binary),
    "regression": (F.mse_loss, _squared),
}  # of labels, and of a teacher's outputs


@dataclass(kw_only=True)
class FML(Strategy):
    """FML (Shen et al., 2020); private models may differ.

    alpha, beta: the weights of the labels in the private model's and the meme's loss, 0.5 each in the paper; 1 and 1
    switch distillation off. loss: one of `fedkd.kd_losses` with its options, in place of KL. meme: the shared
    architecture, such as `{ name = "mlp", hidden = [64] }`; by default the first of `model`. Memes are averaged without
    weights, as in the paper. `global/accuracy` is that of the meme.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    client: ClassVar[type[Client]] = FMLClient
    own_loop: ClassVar[bool] = True
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    meme: NamedTable | None = None
    loss: NamedTable | None = None

    @property
    def meme_architecture(self) -> Architecture:
        """Return the meme's architecture."""
        return self.meme if self.meme is not None else 0

    def check(self, environment: Environment) -> None:
        """Raise InputError for a meme that cannot be built, and a loss that cannot be had."""
        check_loss(self.loss, environment, "logits", labelled=True)
        environment.model(self.meme_architecture)

    def prepare(self, federation: Round) -> None:
        """Make the first meme."""
        self.weights = federation.environment.initial_weights(self.meme_architecture)

    def run_round(self, federation: Round) -> None:
        """Send the meme, average the trained memes."""
        assert self.weights is not None
        expect = expected_model(self.weights, unweighted=True)
        merged = federation.ask("fit", Payload(weights=self.weights), expect=expect, merge=weighted_mean)
        self.weights = merged.weights
        federation.log("train_loss", merged.numbers["loss"])

    def evaluation(self, federation: Round) -> Payload:
        """Return an empty payload: nodes measure their private models."""
        return Payload()

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the meme."""
        return [(self.meme_architecture, self.weights)] if self.weights else []

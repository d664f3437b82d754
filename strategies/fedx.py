"""FedX: self-supervised clients that distil relations between images, local and of the global model, across views.

Han, Park, Wu, Kim, Wu, Xie, Cha: FedX: Unsupervised Federated Learning with Cross Knowledge Distillation, ECCV 2022,
arXiv:2207.09158; and the authors' code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    ENCODER,
    Architecture,
    Batch,
    Client,
    Contrast,
    ContrastiveLoss,
    Encoder,
    Environment,
    InputError,
    Kept,
    Kind,
    NamedTable,
    NotNegative,
    Positive,
    SelfSupervised,
    SelfSupervisedClient,
    Tensors,
    Wrapper,
    nt_xent,
    whole_batches,
)

Divergence = Literal["code", "jsd"]
RELATION = "relation"  # the prediction head h^m
TEACHER = "teacher"  # the received encoder


class FedXClient(SelfSupervisedClient):
    """Adds three terms to the base's loss. The teacher is the received encoder, frozen, in eval mode."""

    def begin(self, encoder: Encoder) -> None:
        """Freeze the teacher."""
        super().begin(encoder)
        self.networks[TEACHER] = copy.deepcopy(encoder).eval().requires_grad_(False)

    def batches(self) -> Iterator[Batch]:
        """Yield the base's batches, each with `random`: a view of each image of an unrelated batch."""
        unrelated = whole_batches(len(self.data.labels), self.settings.batch_size, self.stream("unrelated"))
        for batch in super().batches():
            yield {**batch, "random": self.view(self.data.inputs[next(unrelated)])}

    def loss(self) -> ContrastiveLoss:
        """Return L_base + NTX(Q1, G2) + REL(P1, P2; Pr) + REL(Q1, Q2; Gr), each with its weight."""
        method = self.layer(FedX)
        return partial(
            cross_knowledge,
            contrast=self.contrast(),
            weights=(method.global_contrastive, method.local_relational, method.global_relational),
            temperature=method.temperature,
            targets=(method.local_target_temperature, method.global_target_temperature),
            divergence=method.divergence,
        )


def cross_knowledge(
    networks: nn.ModuleDict,
    batch: Batch,
    kept: Kept,
    *,
    contrast: Contrast,
    weights: tuple[float, float, float],
    temperature: float,
    targets: tuple[float, float],
    divergence: Divergence,
) -> Tensor:
    """Return the base's loss of a batch and FedX's three terms, with their weights (Han et al., 2022).

    One forward pass of the student over 3B images, so batch norm uses all of them. The teacher's forward pass has only
    the images whose outputs are used. `targets`: temperatures of the mean in the local and the global relational term.
    """
    encoder, (first, second, random) = networks[ENCODER], (batch[name] for name in ("first", "second", "random"))
    p1, p2, p_random = encoder(torch.cat([first, second, random])).chunk(3)
    with torch.no_grad():
        g2, g_random = networks[TEACHER](torch.cat([second, random])).chunk(2)
    q1, q2 = cast(Encoder, encoder).predictors[RELATION](torch.cat([p1, p2])).chunk(2)
    local = relational_loss(p1, p2, p_random, temperature, targets[0], divergence)
    above = relational_loss(q1, q2, g_random, temperature, targets[1], divergence)
    return (
        contrast(networks, batch, kept, p1, p2)
        + weights[0] * nt_xent(q1, g2, temperature)
        + weights[1] * local
        + weights[2] * above
    )


def relational_loss(
    first: Tensor,
    second: Tensor,
    anchors: Tensor,
    temperature: float,
    target_temperature: float,
    divergence: Divergence = "code",
) -> Tensor:
    """Return the difference of two views' relations to anchors (Han et al., 2022, FedX; the code: `js_loss`).

    p, q = softmax(cosines with the anchors / t) of the views, B x D; m = the mean of the same at t2. `code`:
    (KL(m || p) + KL(m || q)) / 2, as in the authors' code; `jsd`: (KL(p || m) + KL(q || m)) / 2, the
    Jensen-Shannon divergence of the paper. Means over the B rows. Gradients go through views, anchors and m.
    """
    x = F.normalize(anchors, dim=1)
    cosines = [F.normalize(view, dim=1) @ x.T for view in (first, second)]
    log_mean = torch.logaddexp(*(F.log_softmax(c / target_temperature, 1) for c in cosines)) - math.log(2)
    parts = []
    for c in cosines:
        log_p = F.log_softmax(c / temperature, 1)
        left, right = (log_mean, log_p) if divergence == "code" else (log_p, log_mean)
        parts.append((left.exp() * (left - right)).sum(1).mean())
    return torch.stack(parts).mean()


@dataclass(kw_only=True)
class FedX(Wrapper):
    """FedX (Han et al., 2022) with a self-supervised base.

    global_contrastive, local_relational, global_relational: weights of the three terms (1 each); temperature: tau;
    local_target_temperature, global_target_temperature: of the mean in the relational terms (`ts`, `tt` of the code).
    divergence: `code`, KL from the mean, as in the authors' code; `jsd`, the paper's Jensen-Shannon divergence.
    The unrelated images are another batch of the same node. Each of the three parts has the base's batch size.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND - {"array"}
    classifies: ClassVar[bool] = False
    own_loop: ClassVar[bool] = True
    base: NamedTable = field(default_factory=lambda: NamedTable(name="simclr"))
    global_contrastive: NotNegative = 1.0
    local_relational: NotNegative = 1.0
    global_relational: NotNegative = 1.0
    temperature: Positive = 0.1
    local_target_temperature: Positive = 0.1
    global_target_temperature: Positive = 0.1
    divergence: Divergence = "code"

    def __post_init__(self) -> None:
        """Give the base's encoder the head h^m."""
        super().__post_init__()
        if isinstance(self.inner, SelfSupervised):
            self.inner.predictors += (RELATION,)

    def check(self, environment: Environment) -> None:
        """Raise InputError for a base that is not self-supervised."""
        if not isinstance(self.inner, SelfSupervised):
            wrong = f"strategy.base.name = {self.base.name!r}"
            raise InputError(f"{wrong}: fedx needs a self-supervised base: simclr, moco, byol, fedu or protocl.")
        super().check(environment)

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the base's global models: none, because an encoder does not classify."""
        return self.inner.global_models()

    def client_class(self) -> type[Client]:
        """Return the base's client half with FedX's terms."""
        return type("FedXClient", (FedXClient, super().client_class()), {})

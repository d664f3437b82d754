"""FedMD: clients with different architectures learn from their mean logits on a public set.

Li, Wang: FedMD: Heterogenous Federated Learning via Model Distillation, 2019, arXiv:1910.03581, Algorithm 1; and the
authors' reference code. Each round: new alignment subset -> mean logits -> digest -> revisit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd import (
    ANY_TASK,
    Client,
    Count,
    Environment,
    Expected,
    InputError,
    Loss,
    ModelLoss,
    Outputs,
    Own,
    Payload,
    Positive,
    Pretraining,
    PublicSetClient,
    Round,
    Samples,
    Sends,
    Task,
    Whole,
    kl_divergence,
)


class FedMDClient(PublicSetClient):
    """Returns its knowledge on the subset, then trains towards the targets (digest) and on its own images (revisit)."""

    def pretrain(self, request: Payload) -> Payload:
        """Train on the labelled public set, then on the node's own images (transfer learning, the paper's step 1)."""
        method: Pretraining = self.strategy
        if epochs := method.epochs_on_public(self.environment):
            labels = self.environment.preprocess.targets(self.public.labels)
            self.train(self.public, labels, purpose="public-pretraining", epochs=epochs)
        if method.private_epochs:
            self.train(self.data, self.labels, purpose="private-pretraining", epochs=method.private_epochs)
        self.keep_model()
        return Payload()

    def communicate(self, request: Payload) -> Payload:
        """Return the knowledge on the subset, P x C, in its order."""
        return self.send_knowledge(self.knowledge(self.subset(request)))

    def digest(self, request: Payload) -> Payload:
        """Train towards the targets on the subset, then on the node's images."""
        self.distil(self.subset(request), request.logits["targets"], self.digest_loss())
        self.train_locally()
        self.keep_model()
        return Payload()

    def knowledge(self, images: Samples) -> Tensor:
        """Return the knowledge that this node sends: its logits."""
        return self.predict(images)

    def digest_loss(self) -> Loss:
        """Return the loss of the digest."""
        method: FedMD = self.strategy
        return digest_loss(method.digest, method.temperature)


def digest_loss(kind: Literal["mae", "kl"], temperature: float) -> Loss:
    """Return the loss of a digest: mean |z - consensus| over samples and classes, or KL at a temperature."""

    return ModelLoss(_mae if kind == "mae" else partial(_kl, temperature=temperature))


def _mae(outputs: Outputs, consensus: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    return F.l1_loss(outputs.logits, consensus)


def _kl(outputs: Outputs, consensus: Tensor, own: Own, frozen: Mapping[str, Outputs], temperature: float) -> Tensor:
    return kl_divergence(outputs.logits, consensus, temperature)


@dataclass(kw_only=True)
class FedMD(Pretraining):
    """FedMD (Li and Wang, 2019, Algorithm 1), in the order of the authors' code; models may differ.

    subset_size: public images per round (the code: 5000); drawn again in each round, sent as indices.
    digest: `mae`, the mean absolute error of logits (the authors' code), or `kl` at `temperature`, with the factor T^2.
    distil_epochs, distil_batch_size: of the digest (the code: 1 and 256). Revisit: `[train]` (the code: 4 epochs, batch
    size 5). public_epochs, private_epochs: pre-training before round 1 (the code: on the public set until convergence,
    then 25 private epochs; by default 10 public ones if the public set has labels, otherwise none). Public labels are
    used for nothing else.

    Both evaluation points are measured: `personal_after_distillation/accuracy`, and `personal_after_fit/accuracy` after
    the revisit, which ends the round: if all nodes take part, it equals `personal/accuracy`. With a cohort smaller than
    all nodes, the targets are the cohort's mean, and only the cohort learns from them.
    """

    client: ClassVar[type[Client]] = FedMDClient
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    distil_batch_size: Count = 256
    digest: Literal["mae", "kl"] = "mae"
    temperature: Positive = 1.0
    public_epochs: Whole | None = None
    private_epochs: Whole = 25

    @property
    def sends(self) -> Sends:
        """Return that targets are logits."""
        return "logits"

    def check(self, environment: Environment) -> None:
        """Also raise InputError for a digest by KL of what are no classes."""
        super().check(environment)
        if self.digest == "kl" and environment.data.spec.task != "classification":
            raise InputError(
                f"strategy.digest = 'kl' is for classes; data.task is {environment.data.spec.task!r}: set 'mae'."
            )

    def run_round(self, federation: Round) -> None:
        """Draw the alignment subset, average the cohort's logits on it, send the mean back."""
        indices = self.draw_subset(federation)
        shape = (self.size(federation.environment), len(federation.environment.data.classes))
        total, count = torch.zeros(shape, dtype=torch.float64), 0
        for reply in federation.ask(
            "communicate", Payload(indices=indices), expect=self.expected(federation, soft=False), stream=True
        ):
            total += reply.payload.logits["knowledge"]
            count += 1
        consensus = (total / count).float()
        federation.ask("digest", Payload(logits={"targets": consensus}, indices=indices), expect=Expected())

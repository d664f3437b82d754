"""FedMD: clients of different architectures agree on the logits of a public set.

Li, Wang: FedMD: Heterogenous Federated Learning via Model Distillation, 2019, arXiv:1910.03581, Algorithm 1; and the
authors' reference code. Each round: new alignment subset -> mean logits -> digest -> revisit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    Client,
    Count,
    Expected,
    Images,
    Loss,
    Payload,
    Positive,
    Pretraining,
    PublicSetClient,
    Round,
    Whole,
    kl_divergence,
)


class FedMDClient(PublicSetClient):
    """Answers with its knowledge on the subset, digests what comes back, revisits its own images."""

    def pretrain(self, request: Payload) -> Payload:
        """Train on the labelled public set, then on the node's own images (transfer learning, the paper's step 1)."""
        self._pretrain()
        return Payload()

    def _pretrain(self) -> None:
        method: Pretraining = self.strategy
        if method.public_epochs:
            labels = torch.from_numpy(self.public.labels)
            self.train(self.public, labels, purpose="public-pretraining", epochs=method.public_epochs)
        if method.private_epochs:
            self.train(self.data, self.labels, purpose="private-pretraining", epochs=method.private_epochs)
        self.keep_model()

    def communicate(self, request: Payload) -> Payload:
        """Return the knowledge on the subset, P x C, in its order; of a latecomer, once it is pre-trained."""
        if not self.has_model:
            self._pretrain()
        return self.send_knowledge(self.knowledge(self.subset(request)))

    def digest(self, request: Payload) -> Payload:
        """Approach the targets on the subset, then revisit the node's own images; a latecomer is pre-trained first."""
        if not self.has_model:  # it failed to answer before
            self._pretrain()
        self.distil(self.subset(request), request.logits["targets"], self.digest_loss())
        self.train_locally()
        self.keep_model()
        return Payload()

    def knowledge(self, images: Images) -> Tensor:
        """Return what this node sends: its logits."""
        return self.predict(images)

    def digest_loss(self) -> Loss:
        """Return the loss of the digest."""
        method: FedMD = self.strategy
        return digest_loss(method.digest, method.temperature)


def digest_loss(kind: Literal["mae", "kl"], temperature: float) -> Loss:
    """Return the loss of a digest: mean |z - consensus| over samples and classes, or KL at a temperature."""

    def mae(model: nn.Module, images: Tensor, consensus: Tensor) -> Tensor:
        return F.l1_loss(model(images), consensus)

    def kl(model: nn.Module, images: Tensor, consensus: Tensor) -> Tensor:
        return kl_divergence(model(images), consensus, temperature)

    return mae if kind == "mae" else kl


@dataclass(kw_only=True)
class FedMD(Pretraining):
    """FedMD (Li and Wang, 2019, Algorithm 1), in the order of the authors' code; models may differ.

    subset_size: images of the public set that a round aligns on (5000 there); drawn anew each round, sent as indices.
    digest: `mae`, the mean absolute error of logits (the authors' code), or `kl` at `temperature`, with the factor T^2.
    distil_epochs, distil_batch_size: of the digest; 1 and 256 there. Revisit: `[train]`; 4 epochs of batch 5 there.
    public_epochs, private_epochs: pre-training before round 1. 25 private epochs there; it trains on the public set
    until it converges, here a number of epochs. Public labels are used for nothing else.

    Both evaluation points are measured: `personal_after_distillation/accuracy`, and `personal_after_fit/accuracy` after
    the revisit, which ends the round: where all nodes take part, it equals `personal/accuracy`. With a cohort below all
    nodes the consensus is the cohort's, and only the cohort digests it.
    """

    client: ClassVar[type[Client]] = FedMDClient
    distil_batch_size: Count = 256
    digest: Literal["mae", "kl"] = "mae"
    temperature: Positive = 1.0
    public_epochs: Whole = 10
    private_epochs: Whole = 25

    def run_round(self, federation: Round) -> None:
        """Draw the alignment subset, average the cohort's logits on it, send the consensus back."""
        indices = self.draw_subset(federation)
        shape = (self.size(federation.environment), len(federation.environment.data.classes))
        total, count = torch.zeros(shape, dtype=torch.float64), 0
        for reply in federation.ask(
            "communicate", Payload(indices=indices), expect=self.expected(federation, soft=False)
        ):
            total += reply.payload.logits["knowledge"]
            count += 1
        consensus = (total / count).float()
        federation.ask("digest", Payload(logits={"targets": consensus}, indices=indices), expect=Expected())

"""FedMD: clients of different architectures agree on the logits of a public set.

Li, Wang: FedMD: Heterogenous Federated Learning via Model Distillation, 2019, arXiv:1910.03581, Algorithm 1; and the
authors' reference code. Each round: new alignment subset -> mean logits -> digest -> revisit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import ArraySpec, Client, Expected, InputError, Payload, Round, Strategy
from fedkd.losses import kl_divergence
from fedkd.training import Loss

if TYPE_CHECKING:
    from fedkd import Environment


class FedMDClient(Client):
    """Holds a personal model; answers with its logits, digests the consensus, revisits its own images."""

    @property
    def method(self) -> FedMD:
        """Return the hyper-parameters."""
        return cast(FedMD, self.strategy)

    def pretrain(self, request: Payload) -> Payload:
        """Train on the labelled public set, then on the node's own images (transfer learning, the paper's step 1)."""
        if self.method.public_epochs:
            labels = torch.from_numpy(self.public.labels)
            self.train(self.public, labels, purpose="public-pretraining", epochs=self.method.public_epochs)
        if self.method.private_epochs:
            labels = torch.from_numpy(self.data.labels)
            self.train(self.data, labels, purpose="private-pretraining", epochs=self.method.private_epochs)
        self.keep_model()
        return Payload()

    def communicate(self, request: Payload) -> Payload:
        """Return the logits on the alignment subset, A x C, in its order."""
        return Payload(logits={"alignment": self.predict(self.public.take(request.indices["alignment"].numpy()))})

    def digest(self, request: Payload) -> Payload:
        """Approach the consensus on the alignment subset, then revisit the node's own images."""
        method = self.method
        consensus = request.logits["consensus"]
        subset = self.public.take(request.indices["alignment"].numpy())
        self.train(
            subset,
            consensus,
            purpose="digest",
            epochs=method.digest_epochs,
            batch_size=method.digest_batch_size,
            loss=digest_loss(method.digest, method.temperature),
        )
        self.measure("personal_after_digest")
        self.train_locally()
        self.keep_model()
        return Payload()


def digest_loss(kind: Literal["mae", "kl"], temperature: float) -> Loss:
    """Return the loss of a digest: mean |z - consensus| over samples and classes, or KL at a temperature."""

    def mae(model: nn.Module, images: Tensor, consensus: Tensor) -> Tensor:
        return F.l1_loss(model(images), consensus)

    def kl(model: nn.Module, images: Tensor, consensus: Tensor) -> Tensor:
        return kl_divergence(model(images), consensus, temperature)

    return mae if kind == "mae" else kl


@dataclass(kw_only=True)
class FedMD(Strategy):
    """FedMD (Li and Wang, 2019, Algorithm 1), in the order of the authors' code; models may differ.

    alignment_size: images of the public set that a round uses, A (5000 there); drawn anew each round, sent as indices.
    digest: `mae`, the mean absolute error of logits (the authors' code), or `kl` at `temperature`, with the factor T^2.
    digest_epochs, digest_batch_size: 1 and 256 there. Revisit: `[train]`; 4 epochs of batch 5 there.
    public_epochs, private_epochs: pre-training before round 1. 25 private epochs there; it trains on the public set
    until it converges, here a number of epochs. Public labels are used for nothing else.

    Both evaluation points are measured: `personal_after_digest/accuracy`, and `personal_after_fit/accuracy` after the
    revisit, which ends the round and so equals `personal/accuracy`. With a cohort below all nodes the consensus is the
    cohort's, and only the cohort digests it.
    """

    client: ClassVar[type[Client]] = FedMDClient
    alignment_size: Annotated[int, Field(ge=1)] = 5000
    digest: Literal["mae", "kl"] = "mae"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    digest_epochs: Annotated[int, Field(ge=1)] = 1
    digest_batch_size: Annotated[int, Field(ge=1)] = 256
    public_epochs: Annotated[int, Field(ge=0)] = 10
    private_epochs: Annotated[int, Field(ge=0)] = 25

    def check(self, environment: Environment) -> None:
        """Refuse a run without a public set that is large enough, or labelled if it is to be trained on."""
        public = environment.data.public
        if public is None:
            raise InputError("strategy fedmd needs a public set: set data.public, such as public = { size = 2000 }.")
        if self.alignment_size > len(public.labels):
            raise InputError(
                f"strategy.alignment_size = {self.alignment_size}: data.public.size is {len(public.labels)}."
            )
        if self.public_epochs and not environment.data.public_labelled:
            raise InputError(
                f"strategy.public_epochs = {self.public_epochs}: the public set has no labels; "
                "set data.public.labelled = true, or public_epochs = 0."
            )

    def prepare(self, federation: Round) -> None:
        """Pre-train every node's model."""
        if self.public_epochs or self.private_epochs:
            federation.ask("pretrain", expect=Expected())

    def run_round(self, federation: Round) -> None:
        """Draw the alignment subset, average the cohort's logits on it, send the consensus back."""
        public = federation.environment.data.public
        assert public is not None
        order = torch.randperm(len(public.labels), generator=federation.stream("alignment"))
        indices = {"alignment": order[: self.alignment_size].int()}
        shape = (self.alignment_size, len(federation.environment.data.classes))
        replies = federation.ask(
            "communicate", Payload(indices=indices), expect=Expected(logits={"alignment": ArraySpec(shape)})
        )
        total, count = torch.zeros(shape, dtype=torch.float64), 0
        for reply in replies:
            total += reply.payload.logits["alignment"]
            count += 1
        federation.ask(
            "digest", Payload(logits={"consensus": (total / count).float()}, indices=indices), expect=Expected()
        )

"""DS-FL: clients are taught by sharpened averages of soft labels on unlabelled public images.

Itahara, Nishio, Koda, Morikura, Yamamoto: Distillation-Based Semi-Supervised Federated Learning for
Communication-Efficient Collaborative Training with Non-IID Private Data, 2021, arXiv:2008.06180; the order of requests
follows a public re-implementation from the group of one of the authors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd import Client, Payload, Round
from fedkd.learning.losses import entropy, kl_from_probabilities, normalised
from fedkd.learning.optimizers import make_optimizer
from fedkd.learning.training import Loss, train
from fedkd.messages.arrays import Tensors, copied, parts_of, under
from fedkd.methods.public_distillation import TransferClient, TransferStrategy

_NEXT = "next"


class DSFLClient(TransferClient):
    """Distils what the last round left, trains on its own images, tells its soft labels on the next subset."""

    def update(self, request: Payload) -> Payload:
        """Distil, train, keep the model, predict: the probabilities on the next subset, P x C."""
        if request.logits:
            self.distil(self.subset(request), request.logits["targets"], self.distillation_loss())
        self.train_locally()
        self.keep_model()
        return self.tell(self.soft_labels(self.subset(request, _NEXT)))

    def distillation_loss(self) -> Loss:
        """Return the loss towards the targets: KL(t || p)."""
        return kl


def kl(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return KL(t || softmax(z)), the mean over the batch."""
    return kl_from_probabilities(model(images), targets)


def entropy_reduction(probabilities: Tensor, temperature: float = 0.1) -> Tensor:
    """Return softmax(p / T) of mean probabilities p, P x C: the paper's entropy reduction aggregation (ERA).

    It acts on probabilities, so even a one-hot row ends at e^(1/T) / (e^(1/T) + C - 1).
    """
    return torch.softmax(probabilities.double() / temperature, dim=-1)


def enhanced_entropy_reduction(probabilities: Tensor, beta: float) -> Tensor:
    """Return p^beta / sum p^beta of mean probabilities p, P x C: SCARLET's enhanced ERA; beta = 1 changes nothing."""
    return torch.softmax(beta * probabilities.double().log(), dim=-1)  # the powers alone may underflow


@dataclass(kw_only=True)
class RelayStrategy(TransferStrategy):
    """Methods whose round is one request: what was learnt on the last subset goes down, the next knowledge up.

    `targets` are the last round's, one tensor a node; a node that has none (round 1, or new in the cohort) gets no
    targets and only trains.
    """

    targets: Tensors = field(default_factory=dict, init=False)
    indices: Tensors = field(default_factory=dict, init=False)

    def target_of(self, node: int) -> Tensor | None:
        """Return the last round's targets for a node, P x C."""
        return self.targets.get(str(node), self.targets.get("all"))

    def relay(self, federation: Round) -> dict[int, Tensor]:
        """Send the last targets and the next indices; return the knowledge on those, by node."""
        following = self.draw_subset(federation, _NEXT)
        payloads: dict[int, Payload] = {}
        shared: dict[int, Payload] = {}
        for node in federation.cohort:
            target = self.target_of(node)
            key = id(target) if "all" in self.targets else node
            if key not in shared:
                logits = {} if target is None else {"targets": target}
                past = self.indices if target is not None else {}
                shared[key] = Payload(logits=logits, indices={**past, **following})
            payloads[node] = shared[key]
        replies = federation.ask("update", payloads, expect=self.expected(federation, soft=True))
        knowledge = {node: reply.logits["knowledge"] for node, reply in replies}
        self.indices = {"subset": following[_NEXT]} if following else {}
        return knowledge

    def state(self) -> Tensors:
        """Return, besides a global model, the last targets and their indices."""
        return under("targets", self.targets) | under("indices", self.indices) | under("weights", self.weights or {})

    def restore(self, state: Tensors) -> None:
        """Take back what `state` returned."""
        kept = parts_of(state)
        self.targets, self.indices = kept.get("targets", {}), kept.get("indices", {})
        self.weights = kept.get("weights")


@dataclass(kw_only=True)
class DSFL(RelayStrategy):
    """DS-FL (Itahara et al., 2021); models may differ.

    aggregation: `era`, softmax(mean p / temperature) with temperature 0.1; `enhanced_era`, p^beta / sum p^beta, where
    beta = 1 is the plain mean. Clients: distil the last targets, train, predict on the next subset; the targets of the
    last round are the server's alone. The server trains a model of the first architecture on the same targets: the
    method's global result. Its optimiser is `[train]`'s.

    `personal/accuracy` is after local training, `personal_after_distillation/accuracy` before it.
    """

    client: ClassVar[type[Client]] = DSFLClient
    global_model: ClassVar[bool] = True
    aggregation: Literal["era", "enhanced_era"] = "era"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    beta: Annotated[float, Field(gt=0)] = 1.0

    def run_round(self, federation: Round) -> None:
        """Relay, aggregate the knowledge, train the server's model on it."""
        knowledge = self.relay(federation)
        mean = torch.stack(list(knowledge.values())).double().mean(0)
        if self.aggregation == "era":
            teacher = entropy_reduction(mean, self.temperature)
        else:
            teacher = enhanced_entropy_reduction(mean, self.beta)
        self.targets = {"all": teacher.float()}
        federation.log("mean_entropy", float(entropy(normalised(mean)).mean()))
        federation.log("target_entropy", float(entropy(teacher).mean()))
        self._train_server(federation)

    def _train_server(self, federation: Round) -> None:
        assert self.weights is not None
        environment = federation.environment
        public = environment.data.public
        assert public is not None
        model = environment.model(0)
        model.load_state_dict(self.weights)
        settings = federation.config.train.in_round(federation.number)
        loss = train(
            model,
            public.take(self.indices["subset"].numpy()) if self.indices else public,
            self.targets["all"],
            epochs=self.distil_epochs,
            batch_size=self.distil_batch_size,
            optimizer=make_optimizer(model, settings.optimizer),
            preprocess=environment.preprocess,
            order=federation.stream("server-distillation"),
            clip=settings.clip,
            loss=kl,
            augment=False,
        )
        self.weights = copied(model.state_dict())
        federation.log("server_loss", loss)

    def evaluation(self, nodes: list[int]) -> Payload:
        """Let nodes measure their own models; the server's is measured by the server."""
        return Payload()

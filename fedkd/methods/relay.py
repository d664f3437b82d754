"""Methods with one request per round: nodes get the last round's targets and return their new knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..core.round import Round
from ..data.spec import Task
from ..learning.losses import kl_from_probabilities
from ..learning.training import LOSSES, Loss, ModelLoss, Outputs, Own
from ..messages.arrays import Tensors
from ..messages.payload import Payload
from .public_distillation import PublicSetClient, PublicSetStrategy

NEXT = "next"


class RelayClient(PublicSetClient):
    """Distils the last round's targets, trains on its own images, returns its soft labels on the next subset."""

    def update(self, request: Payload) -> Payload:
        """Distil, train, keep the model; return the probabilities on the next subset, P x C."""
        if request.logits:
            self.distil(self.subset(request), request.logits["targets"], self.distillation_loss())
        self.train_locally()
        self.keep_model()
        return self.send_knowledge(self.soft_labels(self.subset(request, NEXT)))

    def distillation_loss(self) -> Loss:
        """Return the loss towards the targets: KL(t || p), or of other tasks the loss of labels."""
        return distillation_of(self.environment.data.spec.task)


def _kl(outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    return kl_from_probabilities(outputs.logits, targets)


distillation_kl = ModelLoss(_kl)  # KL(t || softmax(z)), the mean over the batch


def distillation_of(task: Task) -> ModelLoss:
    """Return the loss towards a teacher's outputs (see `losses.soft`)."""
    return distillation_kl if task == "classification" else ModelLoss(LOSSES[task])


@dataclass(kw_only=True)
class RelayStrategy(PublicSetStrategy):
    """Methods with one request per round: the targets on the last subset go down, the new knowledge comes up.

    `targets` are those of the last round, one tensor for each node. A node without targets (in round 1, or because it
    was not in the last cohort) only trains.
    """

    targets: Tensors = field(default_factory=dict, init=False)
    indices: Tensors = field(default_factory=dict, init=False)

    def target_of(self, node: int) -> Tensor | None:
        """Return the last round's targets for a node, P x C."""
        return self.targets.get(str(node), self.targets.get("all"))

    def relay(self, federation: Round) -> dict[int, Tensor]:
        """Send the last targets and the next indices; return the knowledge on the next subset, by node."""
        following = self.draw_subset(federation, NEXT)
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
        soft = federation.environment.data.spec.task == "classification"
        replies = federation.ask("update", payloads, expect=self.expected(federation, soft=soft))
        knowledge = {node: reply.logits["knowledge"] for node, reply in replies}
        self.indices = {"subset": following[NEXT]} if following else {}
        return knowledge

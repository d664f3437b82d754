"""KnFu: each client learns from the fused soft labels of its semantic neighbours.

Seyedmohammadi, Kawa Atapour, Abouei, Mohammadi: KnFu: Effective Knowledge Fusion, 2024, arXiv:2403.11892. The authors
published no code. This file is a reading of the paper, not a copy of its equations 4 to 9.

What the paper says (its text, or texts about it): clients with different models exchange predictions on a public set
(the paper: transfer set). A round has four steps: local training (equation 3), extraction of soft labels, effective
knowledge fusion, fine-tuning. Each client has an estimated probability distribution (EPD). Knowledge is fused for each
client separately, from its semantic neighbours only. beta = 10 in equation 8 in all experiments. If local data are
large and very heterogeneous, local training can be better than fusion.

What is inferred: the EPD is the mean soft label over the public set; the distance is a KL divergence of two EPDs;
weights are softmax(-beta distance); targets are fused probabilities; fine-tuning minimises T^2 KL to them; a client is
also a sender to itself. Each is a named hyper-parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedkd import (
    Client,
    Count,
    Environment,
    Expected,
    InputError,
    ModelLoss,
    NotNegative,
    Outputs,
    Own,
    Payload,
    Positive,
    PublicSetClient,
    PublicSetStrategy,
    Round,
    Sends,
    fuse,
    kl_from_probabilities,
    log_weights,
    normalised,
)

EpdMode = Literal["soft", "hard"]
Divergence = Literal["kl_receiver_sender", "kl_sender_receiver", "jeffreys", "js"]
WeightFunction = Literal["softmax", "topk", "threshold"]
FuseSpace = Literal["prob", "logit"]


class KnFuClient(PublicSetClient):
    """Trains on its own images, sends its knowledge, and is fine-tuned towards the targets fused for it."""

    def extract(self, request: Payload) -> Payload:
        """Do steps 1 and 2: local training, then return the knowledge on the public set, P x C."""
        method: KnFu = self.strategy
        self.train_locally()
        self.keep_model()
        images = self.subset(request)
        if method.fuse_space == "logit":
            return self.send_knowledge(self.predict(images) / method.extraction_temperature)
        return self.send_knowledge(self.soft_labels(images, method.extraction_temperature))

    def finetune(self, request: Payload) -> Payload:
        """Do step 4: train the model towards the fused targets on the public set."""
        method: KnFu = self.strategy
        images, targets = self.subset(request), request.logits["targets"]
        wanted = targets
        if method.loss is None:
            wanted = torch.cat([targets, torch.from_numpy(images.labels).float()[:, None]], dim=1)
        self.distil(images, wanted, fused_loss(method.temperature, method.public_cross_entropy, method.fuse_space))
        self.keep_model()
        return Payload()


def fused_loss(temperature: float, label_weight: float, space: FuseSpace) -> ModelLoss:
    """Return T^2 KL(t || softmax(z / T)) + label_weight CE(z, y), the mean over the batch.

    A row of its targets, B x (C + 1): the fused target t, or its logits, as `space` says, then the public label y.
    """
    return ModelLoss(partial(_fused, temperature=temperature, label_weight=label_weight, space=space))


def _fused(
    outputs: Outputs, wanted: Tensor, own: Own, frozen: Mapping[str, Outputs],
    temperature: float, label_weight: float, space: FuseSpace,
) -> Tensor:  # fmt: skip
    targets = wanted[:, :-1]
    if space == "logit":
        targets = torch.softmax(targets, dim=1)  # they are divided by the extraction's temperature already
    value = temperature**2 * kl_from_probabilities(outputs.logits, targets, temperature)
    if label_weight:
        value = value + label_weight * F.cross_entropy(outputs.logits, wanted[:, -1].long())
    return value


def estimated_priors(soft_labels: Tensor, mode: EpdMode = "soft", epsilon: float = 1e-8) -> Tensor:
    """Return the EPD of each client, N x C in float64, from soft labels N x P x C (inferred).

    `soft`: the mean soft label; `hard`: the histogram of the most likely classes. `epsilon` is added before rows are
    normalised, so that no entry is 0.
    """
    if mode == "hard":
        mean = F.one_hot(soft_labels.argmax(-1), soft_labels.shape[-1]).double().mean(1)
    else:
        mean = soft_labels.double().mean(1)
    return normalised(mean + epsilon)


def distances(priors: Tensor, divergence: Divergence = "kl_receiver_sender") -> Tensor:
    """Return the N x N divergences between EPDs (N x C); row: receiver, column: sender (inferred).

    `kl_receiver_sender`: KL(E_n || E_m); `kl_sender_receiver`: KL(E_m || E_n); `jeffreys`: the mean of both;
    `js`: the Jensen-Shannon divergence, with natural logarithms.
    """
    logs = priors.log()
    kl = (priors[:, None] * (logs[:, None] - logs[None, :])).sum(-1).clamp(min=0)
    if divergence == "kl_receiver_sender":
        return kl
    if divergence == "kl_sender_receiver":
        return kl.T
    if divergence == "jeffreys":
        return (kl + kl.T) / 2
    middle = ((priors[:, None] + priors[None, :]) / 2).log()
    to_middle = (priors[:, None] * (logs[:, None] - middle)).sum(-1).clamp(min=0)
    return (to_middle + to_middle.T) / 2


def neighbour_weights(
    distances: Tensor,
    beta: float = 10.0,
    *,
    function: WeightFunction = "softmax",
    k: int | None = None,
    threshold: float = 0.0,
    include_self: bool = True,
) -> Tensor:
    """Return W, N x N: softmax over senders of -beta d_nm; each row sums to 1 (the form of equation 8 is inferred).

    `topk` keeps the k largest weights of a row (all without k), `threshold` those of at least `threshold` (and always
    the largest). Both scale the kept weights to sum 1. Without `include_self` the diagonal is 0, except if there is
    only one client.
    """
    scores, n = -beta * distances.double(), len(distances)
    if not include_self and n > 1:
        scores = scores.masked_fill(torch.eye(n, dtype=torch.bool), -torch.inf)
    weights = torch.softmax(scores, dim=1)
    if function == "topk":
        kept = torch.zeros_like(weights, dtype=torch.bool)
        kept.scatter_(1, weights.topk(min(k or n, n), dim=1).indices, True)
        weights = normalised(weights * kept)
    elif function == "threshold":
        kept = (weights >= threshold) | (weights == weights.amax(1, keepdim=True))
        weights = normalised(weights * kept)
    return weights


@dataclass(kw_only=True)
class KnFu(PublicSetStrategy):
    """KnFu (Seyedmohammadi et al., 2024), as interpreted at the top of this file; models may differ.

    beta: 10 in the paper; its formula is inferred. The paper does not give the others; they are inferred here:
    epd_mode, epd_epsilon: how a client's label distribution is estimated; `hard` needs epsilon of about 1e-3.
    divergence: between two EPDs. weight_function: `softmax`, or hard neighbours by `topk` (the `k` nearest; `k` has no
    default; with include_self a node is its own nearest neighbour) or `threshold`.
    include_self: whether a client's own knowledge is fused. fuse_space: `prob`, or `logit` as in FedMD.
    extraction_temperature, temperature: of the soft labels, and of fine-tuning. public_cross_entropy: weight of the
    cross-entropy with public labels in fine-tuning, 0 for an unlabelled public set.

    beta = 0 is the mean over clients: FedMD in KnFu's order. Fine-tuning ends the round: if all nodes take part,
    `personal/accuracy` equals `personal_after_distillation/accuracy`; `personal_after_fit/accuracy` is measured right
    after local training. The public set should be balanced: otherwise all EPDs have the same bias, which is not
    corrected here.
    """

    client: ClassVar[type[Client]] = KnFuClient
    balances: ClassVar[bool] = True
    beta: NotNegative = 10.0
    epd_mode: EpdMode = "soft"
    epd_epsilon: Positive = 1e-8
    divergence: Divergence = "kl_receiver_sender"
    weight_function: WeightFunction = "softmax"
    k: Count | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    include_self: bool = True
    fuse_space: FuseSpace = "prob"
    extraction_temperature: Positive = 1.0
    temperature: Positive = 1.0
    public_cross_entropy: NotNegative = 0.0

    @property
    def sends(self) -> Sends:
        """Return what targets are, by `fuse_space`."""
        return "logits" if self.fuse_space == "logit" else "probabilities"

    def check(self, environment: Environment) -> None:
        """Also raise InputError for `topk` without k, and for public_cross_entropy without public labels."""
        super().check(environment)
        if self.weight_function == "topk" and self.k is None:
            raise InputError("strategy.weight_function = 'topk': set strategy.k, the number of senders of each node.")
        if self.public_cross_entropy and not environment.data.public_labelled:
            raise InputError(
                f"strategy.public_cross_entropy = {self.public_cross_entropy}: the public set has no labels; "
                "set data.public.labelled = true, or public_cross_entropy = 0."
            )

    def run_round(self, federation: Round) -> None:
        """Collect the cohort's knowledge, fuse it for each node from its neighbours, send each node its targets."""
        indices = self.draw_subset(federation)
        received = self.ask_knowledge(federation, "extract", Payload(indices=indices), soft=self.fuse_space == "prob")
        nodes, knowledge = list(received), torch.stack(list(received.values()))
        soft = torch.softmax(knowledge.double(), -1) if self.fuse_space == "logit" else normalised(knowledge)
        priors = estimated_priors(soft, self.epd_mode, self.epd_epsilon)
        weights = neighbour_weights(
            distances(priors, self.divergence),
            self.beta,
            function=self.weight_function,
            k=self.k,
            threshold=self.threshold,
            include_self=self.include_self,
        )
        targets = fuse(weights, knowledge if self.fuse_space == "logit" else soft)
        log_weights(federation, nodes, weights)
        known = federation.environment.data.priors
        if known is not None:
            federation.log("prior_distance", float((priors - torch.from_numpy(known[nodes])).abs().sum(1).mean()))
        federation.ask(
            "finetune",
            {n: Payload(logits={"targets": t}, indices=indices) for n, t in zip(nodes, targets, strict=True)},
            expect=Expected(),
        )

"""KT-pFL: each client learns from a mixture of all clients' soft labels. The server learns the coefficients.

Zhang, Guo, Ma, Wang, Xu, Wu: Parameterized Knowledge Transfer for Personalized Federated Learning, NeurIPS 2021,
arXiv:2111.02862; and the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from fedkd import (
    Client,
    Count,
    Expected,
    Loss,
    ModelLoss,
    NotNegative,
    Outputs,
    Own,
    Payload,
    Positive,
    Pretraining,
    Round,
    Samples,
    fuse,
    kl_from_probabilities,
    log_weights,
)

from .fedmd import FedMDClient

Reduction = Literal["mean", "batchmean"]


class KTpFLClient(FedMDClient):
    """The client half of FedMD, but with soft labels at a temperature."""

    def knowledge(self, images: Samples) -> Tensor:
        """Return softmax(z / T)."""
        return self.soft_labels(images, cast(KTpFL, self.strategy).temperature)

    def digest_loss(self) -> Loss:
        """Return KL(t || softmax(z / T)): the mean over the batch, or over batch and classes."""
        method: KTpFL = self.strategy
        return ModelLoss(partial(_towards, temperature=method.temperature, reduction=method.reduction))


def _towards(
    outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs], temperature: float, reduction: Reduction
) -> Tensor:
    value = kl_from_probabilities(outputs.logits, targets, temperature)
    return value / targets.shape[1] if reduction == "mean" else value


def update_coefficients(
    coefficients: Tensor, knowledge: Tensor, rho: float, divergence: Literal["mse", "kl"] = "mse"
) -> Tensor:
    """Return the coefficients after one step for each receiver, N x N, from knowledge (probabilities) N x P x C.

    The objective of row n is D(p_n, sum_m c_nm p_m) + rho mean((c_n - 1/N)^2), where D is the mean squared error over
    samples and classes (the authors' code) or KL(sum_m c_nm p_m || p_n), the mean over samples (the paper). The step is
    as in the code. Five times, the step size of a row is divided by 5 if its product with the row's mean |gradient| is
    above 0.01, then multiplied by 5 if it is below. Rows end as softmax(5 c_n).
    """
    count = len(coefficients)
    knowledge = knowledge.double()
    rows = []
    for receiver in range(count):
        row = coefficients[receiver].double().detach().requires_grad_()
        with torch.enable_grad():
            mixture = torch.einsum("m,mpc->pc", row, knowledge)
            if divergence == "mse":
                distance = (knowledge[receiver] - mixture).square().mean()
            else:
                logs = mixture.clamp(min=1e-12).log() - knowledge[receiver].clamp(min=1e-12).log()
                distance = (mixture * logs).sum(1).mean()
            penalty = (row - 1 / count).square().mean()
            (gradient,) = torch.autograd.grad(distance + rho * penalty, row)
        size, step = float(gradient.abs().mean()), 1.0
        for _ in range(5):
            if size > 0.01:
                size, step = size / 5, step / 5
            if size < 0.01:
                size, step = size * 5, step * 5
        rows.append(torch.softmax(5 * (row.detach() - step * gradient), dim=0))
    return torch.stack(rows)


@dataclass(kw_only=True)
class KTpFL(Pretraining):
    """KT-pFL (Zhang et al., 2021), in the order of the authors' code; models may differ.

    rho: the weight of the term that pulls the coefficients towards 1/N (the code: 0.7). temperature: 10 in the code.
    subset_size: 5000 in the code. divergence: `mse` (the code) or `kl` (the paper) in the objective of the
    coefficients. reduction: `mean` over batch and classes (the code) or `batchmean`. A node's own soft labels are part
    of the mixture, so its own coefficient grows. The code updates its matrix row by row and takes the softmax after all
    rows; no row's step depends on another row, so their order has no effect.

    With a cohort smaller than all nodes, only the cohort's rows and columns are updated, scaled to sum to 1. Each row
    keeps the sum of its coefficients in the columns of absent nodes.
    """

    client: ClassVar[type[Client]] = KTpFLClient
    balances: ClassVar[bool] = True
    distil_batch_size: Count = 256
    rho: NotNegative = 0.7
    temperature: Positive = 10.0
    divergence: Literal["mse", "kl"] = "mse"
    reduction: Reduction = "mean"
    known: list[int] = field(default_factory=list, init=False)
    coefficients: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64), init=False)

    def prepare(self, federation: Round) -> None:
        """Start with equal coefficients."""
        self.known = list(federation.cohort)
        self.coefficients = torch.full((len(self.known),) * 2, 1 / len(self.known), dtype=torch.float64)

    def run_round(self, federation: Round) -> None:
        """Collect soft labels, update the coefficients, send each node its own mixture."""
        indices = self.draw_subset(federation)
        received = self.ask_knowledge(federation, "communicate", Payload(indices=indices), soft=True)
        nodes, knowledge = list(received), torch.stack(list(received.values()))
        self._welcome([node for node in nodes if node not in self.known])
        places = torch.tensor([self.known.index(node) for node in nodes])
        block = self.coefficients[places[:, None], places]
        mass = block.sum(1, keepdim=True)
        weights = update_coefficients(block / mass, knowledge, self.rho, self.divergence)
        self.coefficients[places[:, None], places] = weights * mass
        log_weights(federation, nodes, weights)
        targets = fuse(weights, knowledge)
        federation.ask(
            "digest",
            {n: Payload(logits={"targets": t}, indices=indices) for n, t in zip(nodes, targets, strict=True)},
            expect=Expected(),
        )

    def _welcome(self, newcomers: list[int]) -> None:
        """Give nodes that join later a row of equal coefficients, and the share of one node in all other rows."""
        for node in newcomers:
            before = len(self.known)
            wider = torch.full((before + 1,) * 2, 1 / (before + 1), dtype=torch.float64)
            wider[:before, :before] = self.coefficients * before / (before + 1)
            self.coefficients, self.known = wider, [*self.known, node]

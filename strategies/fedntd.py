"""FedNTD: FedAvg whose clients keep the global model's outputs for the classes other than an image's label.

Lee, Jeong, Shin, Bae, Yun: Preservation of the Global Knowledge by Not-True Distillation in Federated Learning, NeurIPS
2022, arXiv:2106.03097, equations 3 and 4; and the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd import Client, Loss, ModelLoss, NotNegative, Outputs, Own, Positive, kl_divergence

from .fedavg import FedAvg, FedAvgClient


class FedNTDClient(FedAvgClient):
    """Adds not-true distillation. The teacher is the received model, frozen and in eval mode."""

    def local_loss(self) -> Loss:
        """Return CE + beta tau^2 KL over the not-true classes."""
        method: FedNTD = self.strategy
        teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        distilled = partial(not_true_distillation, beta=method.beta, temperature=method.temperature)
        return ModelLoss(distilled, frozen={"teacher": teacher})


def not_true_distillation(
    outputs: Outputs, labels: Tensor, own: Own, frozen: Mapping[str, Outputs], beta: float, temperature: float
) -> Tensor:
    """Return CE + beta tau^2 KL over the not-true classes."""
    logits, taught = not_true(outputs.logits, labels), not_true(frozen["teacher"].logits, labels)
    return F.cross_entropy(outputs.logits, labels) + beta * kl_divergence(logits, taught, temperature)


def not_true(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits without the logit of each row's label, B x (C - 1), in their order."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, others + (others >= labels[:, None]))


@dataclass(kw_only=True)
class FedNTD(FedAvg):
    """FedNTD (Lee et al., 2022): CE + beta tau^2 KL(softmax(z_global / tau) || softmax(z / tau)), both not-true.

    beta: 1, temperature tau: 1 in the authors' configs. beta = 0 is FedAvg.
    """

    client: ClassVar[type[Client]] = FedNTDClient
    beta: NotNegative = 1.0
    temperature: Positive = 1.0

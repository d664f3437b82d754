"""FedNTD: FedAvg whose clients keep the global model's outputs for the classes other than an image's label.

Lee, Jeong, Shin, Bae, Yun: Preservation of the Global Knowledge by Not-True Distillation in Federated Learning, NeurIPS
2022, arXiv:2106.03097, equations 3 and 4; and the authors' code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Client, GlobalModelClient, Loss, NotNegative, Positive, kl_divergence

from .fedavg import FedAvg


class FedNTDClient(GlobalModelClient):
    """Adds not-true distillation. The teacher is the received model, frozen and in eval mode."""

    def local_loss(self) -> Loss:
        """Return CE + beta tau^2 KL over the not-true classes."""
        method: FedNTD = self.strategy
        teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            logits = model(images)
            with torch.no_grad():
                taught = teacher(images)
            kept = kl_divergence(not_true(logits, labels), not_true(taught, labels), method.temperature)
            return F.cross_entropy(logits, labels) + method.beta * kept

        return loss


def not_true(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits without the logit of each row's label, B x (C - 1), in their order."""
    count, classes = logits.shape
    others = torch.arange(classes, device=logits.device) != labels[:, None]
    return logits[others].reshape(count, classes - 1)


@dataclass(kw_only=True)
class FedNTD(FedAvg):
    """FedNTD (Lee et al., 2022): CE + beta tau^2 KL(softmax(z_global / tau) || softmax(z / tau)), both not-true.

    beta: 1, temperature tau: 1 in the authors' configs. beta = 0 is FedAvg.
    """

    client: ClassVar[type[Client]] = FedNTDClient
    beta: NotNegative = 1.0
    temperature: Positive = 1.0

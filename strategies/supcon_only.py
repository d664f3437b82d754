"""FedAvg with a supervised contrastive loss in each batch: the control of methods that add anchors to such a loss.

Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362; FedLGD's regulariser without anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import BatchLoss, Client, Loss, NotNegative, Own, Positive, supervised_contrast

from .fedavg import FedAvg, FedAvgClient


class SupConClient(FedAvgClient):
    """Minimises CE + lambda L_con over the batch."""

    def local_loss(self) -> Loss:
        """Return the cross-entropy plus the supervised contrastive loss of the batch's features."""
        method: SupConOnly = self.strategy
        return contrasted_loss(method.lambda_con, method.temperature)


def contrasted_loss(lambda_con: float, temperature: float) -> BatchLoss:
    """Return CE + lambda L_con(features, labels) of a batch."""
    return BatchLoss(partial(_contrasted, lambda_con=lambda_con, temperature=temperature))


def _contrasted(
    model: nn.Module, images: Tensor, labels: Tensor, own: Own, *, lambda_con: float, temperature: float
) -> Tensor:
    features = cast(Callable[[Tensor], Tensor], model.features)(images)
    value = F.cross_entropy(cast(nn.Module, model.classifier)(features), labels)
    return value + lambda_con * supervised_contrast(features, labels, temperature)


@dataclass(kw_only=True)
class SupConOnly(FedAvg):
    """FedAvg with a supervised contrastive loss in the batch, without any global data (the control of FedLGD and VHL).

    lambda_con: 0 is FedAvg; temperature: tau, 0.07 as in FedLGD and VHL. The features are the classifier's inputs.
    """

    client: ClassVar[type[Client]] = SupConClient
    lambda_con: NotNegative = 1.0
    temperature: Positive = 0.07

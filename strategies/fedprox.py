"""FedProx: FedAvg whose clients stay near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020,
arXiv:1812.06127, equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, cast

from pydantic import Field
from torch import Tensor, nn

from fedkd import Client, GlobalModelClient
from fedkd.training import Loss, cross_entropy

from .fedavg import FedAvg


class FedProxClient(GlobalModelClient):
    """Minimises h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||^2."""

    def local_loss(self) -> Loss:
        """Return the cross-entropy plus the proximal term around the received weights."""
        mu = cast(FedProx, self.strategy).mu
        center = [parameter.detach().clone() for parameter in self.model.parameters()]

        def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            distance = sum(((p - c) ** 2).sum() for p, c in zip(model.parameters(), center, strict=True))
            return cross_entropy(model, images, labels) + mu / 2 * distance

        return loss


@dataclass(kw_only=True)
class FedProx(FedAvg):
    """FedProx (Li et al., 2020, equation 2): the proximal term is part of the loss, so momentum and Adam see it too.

    mu: its weight; the paper tunes it in {0.001, 0.01, 0.1, 1}; 0 is FedAvg. Deviation: all clients do the same number
    of epochs (the paper lets stragglers do fewer: its gamma-inexact solutions).
    """

    client: ClassVar[type[Client]] = FedProxClient
    mu: Annotated[float, Field(ge=0)] = 0.01

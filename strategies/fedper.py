"""FedPer: nodes average the first layers of their models, and keep the last ones.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019, arXiv:1912.00818,
Algorithms 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedkd import Count, SharedPart, layers_of


@dataclass(kw_only=True)
class FedPer(SharedPart):
    """FedPer (Arivazhagan et al., 2019, Algorithms 1 and 2): w_B <- sum_k (n_k / n) w_B,k; w_P,k stays at node k.

    A node trains the base layers w_B and its personalisation layers w_P,k together. kept_layers: the paper's K_P, how
    many layers with weights, counted from the end, a node keeps (see `layers_of`). Deviation: as FedAvg's.
    """

    equal_models: ClassVar[bool] = True
    kept_layers: Count = 1

    def shared_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights of the base layers."""
        return [name for layer in layers_of(model)[: -self.kept_layers] for name in layer]

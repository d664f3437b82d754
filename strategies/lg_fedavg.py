"""LG-FedAvg: nodes keep the first layers of their models, and average the last ones.

Liang, Liu, Liu, Salakhutdinov, Morency: Think Locally, Act Globally: Federated Learning with Local and Global
Representations, 2020, arXiv:2001.01523, Algorithm 1; and the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fedkd import Count, SharedPart, layers_of


@dataclass(kw_only=True)
class LGFedAvg(SharedPart):
    """LG-FedAvg (Liang et al., 2020): the global model, the last layers, is averaged; the local one stays at its node.

    A node trains both together. shared_layers: how many layers with weights, counted from the end, are shared (the
    code's `num_layers_keep`, 3 of 5 for MNIST; see `layers_of`). The layers before may differ between nodes. The
    authors' code averages the cohort's layers with `weighting = "uniform"`, and starts from a FedAvg model: the local
    layers of nodes that start from random weights never meet. `model.weights` gives all nodes such a start.
    """

    shared_layers: Count = 1

    def shared_names(self, model: nn.Module) -> list[str]:
        """Return the names of the weights of the global layers."""
        return [name for layer in layers_of(model)[-self.shared_layers :] for name in layer]

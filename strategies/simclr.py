"""FedSimCLR: FedAvg of encoders that learn to distinguish the views of an image from all other images.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
arXiv:2002.05709; federated as in FedX's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

from torch import Tensor, nn

from fedkd import Batch, Client, Contrast, Kept, Positive, SelfSupervised, SelfSupervisedClient, nt_xent

from .fedavg import FedAvg


class SimCLRClient(SelfSupervisedClient):
    """Minimises NT-Xent of the two views' projections."""

    def contrast(self) -> Contrast:
        """Return the NT-Xent loss at the strategy's temperature."""
        return partial(projections_nt_xent, temperature=cast(SimCLR, self.method).temperature)


def projections_nt_xent(
    networks: nn.ModuleDict, batch: Batch, kept: Kept, first: Tensor, second: Tensor, *, temperature: float
) -> Tensor:
    """Return NT-Xent of the two views' projections, B x width."""
    return nt_xent(first, second, temperature)


@dataclass(kw_only=True)
class SimCLR(SelfSupervised, FedAvg):
    """SimCLR (Chen et al., 2020, equation 1) on each node, averaged by FedAvg. temperature: 0.1 in FedX's runs.

    Batches have the size of `[train]`. The last images of an epoch that do not fill a batch are left out. A node with
    fewer images than a batch trains on all of them together.
    """

    client: ClassVar[type[Client]] = SimCLRClient
    temperature: Positive = 0.1

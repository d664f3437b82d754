"""FedBYOL: an encoder predicts, from one view of an image, the output of a slow target network for the other view.

Grill et al.: Bootstrap Your Own Latent, NeurIPS 2020, arXiv:2006.07733; federated as in EasyFL's code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedkd import Client, Encoder, SelfSupervised, SelfSupervisedClient, copied, move_towards

from .fedavg import FedAvg

ONLINE = "online"  # the prediction head
_TARGET = "target"


class BYOLClient(SelfSupervisedClient):
    """Keeps its target network between rounds."""

    def begin(self, encoder: Encoder) -> None:
        """Load the target network: the stored one, or the first time a copy of the received encoder."""
        super().begin(encoder)
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        self.target.load_state_dict(self.recall(_TARGET) or encoder.state_dict())
        self.target.train()

    def contrast(self, encoder: Encoder, views: tuple[Tensor, Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return (2 - 2 cos(q(P1), P2')) + (2 - 2 cos(q(P2), P1')), the mean over the batch."""
        with torch.no_grad():
            wanted = self.target(torch.cat(views)).chunk(2)
        predicted = encoder.predictors[ONLINE](torch.cat([first, second])).chunk(2)
        return prediction_loss(predicted[0], wanted[1]) + prediction_loss(predicted[1], wanted[0])

    def after_step(self, encoder: Encoder) -> None:
        """Update the target network: a small step towards the encoder."""
        move_towards(self.target, encoder, cast(BYOL, self.method).momentum)

    def end(self, encoder: Encoder) -> None:
        """Store the target network."""
        self.keep(_TARGET, copied(self.target.state_dict()))


def prediction_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return 2 - 2 cos, the mean over rows, B x D (Grill et al., 2020, equation 2)."""
    return (2 - 2 * F.cosine_similarity(predicted, wanted, dim=1)).mean()


@dataclass(kw_only=True)
class BYOL(SelfSupervised, FedAvg):
    """BYOL (Grill et al., 2020) on each node; FedAvg of encoder, projector and predictor.

    momentum: of the target network (0.99 in EasyFL), which never leaves its node. One forward pass computes both views.
    """

    client: ClassVar[type[Client]] = BYOLClient
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.99
    predictors: tuple[str, ...] = field(default=(ONLINE,), init=False)

"""FedBYOL: an encoder predicts, from one view of an image, the output of a slow target network for the other view.

Grill et al.: Bootstrap Your Own Latent, NeurIPS 2020, arXiv:2006.07733; federated as in EasyFL's code.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ENCODER,
    AfterStep,
    Batch,
    Client,
    Contrast,
    Encoder,
    Kept,
    SelfSupervised,
    SelfSupervisedClient,
    copied,
    move_towards,
)

from .fedavg import FedAvg

ONLINE = "online"  # the prediction head
TARGET = "target"  # the target network


class BYOLClient(SelfSupervisedClient):
    """Keeps its target network between rounds."""

    def begin(self, encoder: Encoder) -> None:
        """Load the target network: the stored one, or the first time a copy of the received encoder."""
        super().begin(encoder)
        target = copy.deepcopy(encoder).requires_grad_(False).train()
        target.load_state_dict(self.recall(TARGET) or encoder.state_dict())
        self.networks[TARGET] = target

    def contrast(self) -> Contrast:
        """Return the loss of the predictions of the target's projections."""
        return target_contrast

    def after_step(self) -> AfterStep:
        """Return the update of the target network: a small step towards the encoder."""
        return partial(move_target, momentum=cast(BYOL, self.method).momentum)

    def end(self, encoder: Encoder) -> None:
        """Store the target network."""
        self.keep(TARGET, copied(self.networks[TARGET].state_dict()))


def target_contrast(networks: nn.ModuleDict, batch: Batch, kept: Kept, first: Tensor, second: Tensor) -> Tensor:
    """Return (2 - 2 cos(q(P1), P2')) + (2 - 2 cos(q(P2), P1')), the mean over the batch."""
    with torch.no_grad():
        wanted = networks[TARGET](torch.cat([batch["first"], batch["second"]])).chunk(2)
    predicted = cast(Encoder, networks[ENCODER]).predictors[ONLINE](torch.cat([first, second])).chunk(2)
    return prediction_loss(predicted[0], wanted[1]) + prediction_loss(predicted[1], wanted[0])


def move_target(networks: nn.ModuleDict, *, momentum: float) -> None:
    """Move the target network towards the encoder."""
    move_towards(networks[TARGET], networks[ENCODER], momentum)


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

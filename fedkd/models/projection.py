"""A projection head between a model's features and its classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn


class Projected(nn.Module):
    """A model with a two-layer projection head between features and classifier (Li et al., 2021, MOON)."""

    def __init__(self, model: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        inputs = cast(nn.Linear, model.classifier).in_features
        self.trunk = model
        self.trunk.classifier = nn.Identity()
        self.head = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, width))
        self.classifier = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the projected features, B x width."""
        projected: Tensor = self.head(cast(Callable[[Tensor], Tensor], self.trunk.features)(images))
        return projected

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, B x C."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

"""The loss scale of training with float16, whose smallest gradients would else become 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FIRST, _GROWTH, _BACKOFF, _STEPS = 2.0**16, 2.0, 0.5, 2000  # as torch.amp.GradScaler


class LossScale:
    """The scale of the loss of K clients, each by the rule of `torch.amp.GradScaler`.

    A client whose gradients are not finite skips its step, and its scale is halved; after 2000 good steps it doubles.
    """

    def __init__(self, clients: int, device: torch.device) -> None:
        """Begin with 65536 for each client."""
        self.scale = torch.full((clients,), _FIRST, device=device)
        self._good = torch.zeros(clients, dtype=torch.int64, device=device)

    def tensors(self) -> list[Tensor]:
        """Return its state, each with an element for each client."""
        return [self.scale, self._good]

    def update(self, finite: Tensor) -> None:
        """Change the scales of the first k clients in place. `finite`: whether a client's gradients were, k."""
        scale, good = self.scale[: len(finite)], self._good[: len(finite)]
        good.add_(1)
        grows = good == _STEPS
        scale.copy_(torch.where(finite, torch.where(grows, scale * _GROWTH, scale), scale * _BACKOFF))
        good.copy_(torch.where(finite & ~grows, good, 0))


def all_finite(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return whether all gradients of one client are finite, as a tensor of one element."""
    return torch.stack([one.isfinite().all() for one in gradients if one is not None]).all()[None]

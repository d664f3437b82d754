"""The trained parameters of many clients as the rows of one tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Shapes = Mapping[str, torch.Size]  # of one client's parameters, by name


def named_rows(flat: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Return the parameters by name, k x ..., as views of rows, k x W."""
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.view(len(flat), *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def clipped(gradients: Tensor, clip: float | None) -> Tensor:
    """Return gradients, k x W, with a norm of each row of at most `clip`, as in `clip_grad_norm_`."""
    if clip is None:
        return gradients
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return gradients * torch.clamp(clip / (norms + 1e-6), max=1.0)

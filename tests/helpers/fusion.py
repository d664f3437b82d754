"""Soft predictions, and the weights of neighbours that KnFu gives them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.strategies.knfu import distances, estimated_priors, neighbour_weights
from fedkd.streams import torch_stream


def soft(seed: int, clients: int = 5, samples: int = 12, classes: int = 4) -> Tensor:
    z = torch.randn(clients, samples, classes, generator=torch_stream(seed, 0, 0, "z"), dtype=torch.float64)
    return torch.softmax(2 * z, -1)


def weights_of(q: Tensor, beta: float = 10.0) -> Tensor:
    return neighbour_weights(distances(estimated_priors(q)), beta)

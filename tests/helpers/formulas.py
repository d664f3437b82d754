"""Formulas by loops over lists, and inputs for them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fedkd.streams import torch_stream


class Given(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch_stream(seed, 0, 0, "x"), dtype=torch.float64)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)

"""Models and inputs without random numbers, for which the published code of FedFTG gave the values in the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd.distillation.generators import ImageGenerator

COUNTS = torch.tensor([[6, 2, 0, 0], [1, 1, 5, 1], [0, 3, 1, 4]])


LABELS = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])


def det(shape: tuple[int, ...], freq: float = 0.37, phase: float = 0.0, scale: float = 1.0) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(freq * i + phase)).view(shape)


def fill(model: nn.Module, scale: float, phase: float) -> nn.Module:
    """Fill parameter number j of the state (buffers count in j, and stay) with det; batch norm's weights around 1."""
    parameters = dict(model.named_parameters())
    norms = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)}
    with torch.no_grad():
        for j, name in enumerate(model.state_dict()):
            if name in parameters:
                values = det(tuple(parameters[name].shape), 0.37, phase + j, scale)
                parameters[name].copy_(values + 1 if name in norms else values)
    return model


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.classifier = nn.Linear(6, 4)

    def features(self, images: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(images))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def net(phase: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    return fill(TinyNet().to(dtype), 0.3, phase)


def gen(dtype: torch.dtype = torch.float32) -> ImageGenerator:
    return fill(ImageGenerator(100, 4, (3, 8, 8), width=4).to(dtype), 0.2, 0.0)  # type: ignore[return-value]


def noise(e: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return det((8, 100), 0.7, e, 1.5).to(dtype)


def checksum(tensors: Iterable[Tensor]) -> tuple[float, float, float]:
    values = torch.cat([t.detach().double().flatten() for t in tensors])
    i = torch.arange(len(values), dtype=torch.float64)
    return float(values.sum()), float(values.norm()), float(values @ torch.cos(0.11 * i))


def state(model: nn.Module, *, counters: bool = False) -> list[Tensor]:
    return [t for n, t in model.state_dict().items() if counters or not n.endswith("num_batches_tracked")]

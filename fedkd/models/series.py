"""Models for series. Steps behind a series' end are 0 after each layer, so that longer padding changes nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import Form
from .zoo import Classifier, Width, serves

Norm = Literal["batch", "group"]


class MaskedNorm(nn.Module):
    """Batch norm over the steps of series, B x C x T: statistics of those that the mask, B x 1 x T, has as 1."""

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the series, normalised in each channel."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            count = mask.sum().clamp(min=1)
            mean = (x * mask).sum((0, 2)) / count
            variance = ((x - mean[:, None]).square() * mask).sum((0, 2)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x - mean[:, None]) * scale[:, None] + self.bias[:, None]


class GroupNorm(nn.Module):
    """Group norm of one group over the steps of a series that the mask has as 1, each series by itself."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the series, normalised over channels and steps."""
        count = mask.sum((1, 2), keepdim=True).clamp(min=1) * x.shape[1]
        mean = (x * mask).sum((1, 2), keepdim=True) / count
        variance = ((x - mean).square() * mask).sum((1, 2), keepdim=True) / count
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]


def _norm(kind: Norm, channels: int) -> nn.Module:
    return MaskedNorm(channels) if kind == "batch" else GroupNorm(channels)


def _same(x: Tensor, layer: nn.Conv1d) -> Tensor:
    """Return the convolution of x, padded to the same length; an even kernel has one step more at the right."""
    wide = layer.kernel_size[0] - 1
    return layer(F.pad(x, (wide // 2, wide - wide // 2)))


class _Residual(nn.Module):
    """Three convolutions with norm and ReLU, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        widths = [inputs, outputs, outputs, outputs]
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, size) for (a, b), size in zip(pairwise(widths), (8, 5, 3), strict=True)
        )
        self.norms = nn.ModuleList(_norm(norm, outputs) for _ in range(3))
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None
        self.shortcut_norm = _norm(norm, outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found = x
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            found = norm(_same(found, cast(nn.Conv1d, conv)), mask)
            found = (F.relu(found) if place < 2 else found) * mask
        short = x if self.shortcut is None else self.shortcut(x)
        return F.relu(found + self.shortcut_norm(short, mask)) * mask


class _Inception(nn.Module):
    """Convolutions of three lengths after a bottleneck, and max pooling, side by side; then norm and ReLU."""

    def __init__(self, inputs: int, filters: int, bottleneck: int, lengths: tuple[int, ...], norm: Norm) -> None:
        super().__init__()
        narrow = inputs > 1
        self.bottleneck = nn.Conv1d(inputs, bottleneck, 1, bias=False) if narrow else None
        width = bottleneck if narrow else inputs
        self.convs = nn.ModuleList(nn.Conv1d(width, filters, length, bias=False) for length in lengths)
        self.pooled = nn.Conv1d(inputs, filters, 1, bias=False)
        self.norm = _norm(norm, filters * (len(lengths) + 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        narrow = x if self.bottleneck is None else self.bottleneck(x)
        parts = [_same(narrow, cast(nn.Conv1d, conv)) for conv in self.convs]
        lowest = torch.where(mask > 0, x, torch.finfo(x.dtype).min)
        highest = F.max_pool1d(lowest, 3, 1, 1) * mask  # behind the end: 0
        parts.append(self.pooled(highest))
        return F.relu(self.norm(torch.cat(parts, 1), mask)) * mask


class _Trunk(nn.Module):
    """Blocks in turn, then the mean over a series' steps. A block with a shortcut gets the input of three before."""

    def __init__(self, blocks: list[nn.Module], shortcuts: dict[int, nn.ModuleList]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.shortcuts = nn.ModuleDict({str(place): layers for place, layers in shortcuts.items()})

    def forward(self, series: Tensor) -> Tensor:
        """Return features, B x D, of series and their mask, B x (channels + 1) x T."""
        x, mask = series[:, :-1], series[:, -1:]
        before = x
        for place, block in enumerate(self.blocks):
            x = block(x, mask)
            if str(place) in self.shortcuts:
                conv, norm = cast(nn.ModuleList, self.shortcuts[str(place)])
                x = F.relu(x + norm(conv(before), mask)) * mask
                before = x
        return x.sum(2) / mask.sum(2).clamp(min=1)


@serves("series")
def resnet1d(form: Form, classes: int, *, width: Width = 64, norm: Norm = "batch") -> nn.Module:
    """Return the ResNet for series of Wang, Yan and Oates (2017): three blocks, widths w, 2 w, 2 w."""
    widths = [form.shape[0] - 1, width, 2 * width, 2 * width]
    blocks: list[nn.Module] = [_Residual(a, b, norm) for a, b in pairwise(widths)]
    return Classifier(_Trunk(blocks, {}), 2 * width, classes)


@serves("series")
def inception_small(form: Form, classes: int, *, filters: Width = 8, norm: Norm = "batch") -> nn.Module:
    """Return a small InceptionTime: three modules with kernels of 20, 10 and 5 steps, one shortcut."""
    return _inception(form, classes, 3, filters, filters, (20, 10, 5), norm)


@serves("series")
def inception_time(form: Form, classes: int, *, norm: Norm = "batch") -> nn.Module:
    """Return one network of InceptionTime (Fawaz et al., 2020): six modules, kernels of 40, 20, 10; two shortcuts."""
    return _inception(form, classes, 6, 32, 32, (40, 20, 10), norm)


def _inception(
    form: Form, classes: int, depth: int, filters: int, bottleneck: int, lengths: tuple[int, ...], norm: Norm
) -> nn.Module:
    width = filters * (len(lengths) + 1)
    inputs = [form.shape[0] - 1] + [width] * (depth - 1)
    blocks: list[nn.Module] = [_Inception(one, filters, bottleneck, lengths, norm) for one in inputs]
    shortcuts = {
        place: nn.ModuleList([nn.Conv1d(inputs[place - 2], width, 1, bias=False), _norm(norm, width)])
        for place in range(2, depth, 3)
    }
    return Classifier(_Trunk(blocks, shortcuts), width, classes)

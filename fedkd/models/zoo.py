"""The model zoo. Each model has `features(x)` and a linear `classifier`; its output is `classifier(features(x))`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import Kind

Shape = tuple[int, int, int]  # channels, height, width
Width = Annotated[int, Field(ge=1)]
ConvNorm = Literal["none", "batch", "instance"]


class Classifier(nn.Module):
    """A feature extractor and a linear classifier on top of it."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, B x C, of images, B x channels x height x width."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


Builder = TypeVar("Builder", bound=Callable[..., nn.Module])


def serves(*kinds: Kind) -> Callable[[Builder], Builder]:
    """Mark a builder with the kinds of samples that its models take; without the mark: all."""

    def mark(builder: Builder) -> Builder:
        builder.kinds = kinds  # type: ignore[attr-defined]
        return builder

    return mark


@serves("image", "table", "series", "array")
def mlp(shape: Shape, classes: int, *, hidden: list[Width] = [200, 200]) -> nn.Module:  # noqa: B006
    """Return a perceptron with ReLU; the default is McMahan et al.'s 2NN (2017)."""
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return Classifier(nn.Sequential(*layers), widths[-1], classes)


@serves("image")
def lenet5(shape: Shape, classes: int) -> nn.Module:
    """Return LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: 61,706 parameters for 28 x 28 x 1."""
    padding = 2 if shape[1] < 32 else 0  # the paper's images are 32 x 32
    trunk = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
    )  # fmt: skip
    head = [nn.Linear(_width(trunk, shape), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return Classifier(nn.Sequential(*trunk, *head), 84, classes)


@serves("image")
def cnn(
    shape: Shape,
    classes: int,
    *,
    channels: list[Width] = [32, 64],  # noqa: B006
    hidden: Width = 512,
) -> nn.Module:
    """Return 5 x 5 convolutions, each with ReLU and 2 x 2 pooling, and a hidden layer; the default is the CNN of
    McMahan et al. (2017).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape[0], *channels]):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    trunk = nn.Sequential(*layers, nn.Flatten())
    return Classifier(nn.Sequential(*trunk, nn.Linear(_width(trunk, shape), hidden), nn.ReLU()), hidden, classes)


@serves("image")
def convnet(
    shape: Shape,
    classes: int,
    *,
    channels: list[Width] = [128, 128, 128],  # noqa: B006
    norm: ConvNorm = "instance",
    pooling: Literal["average", "max"] = "average",
    first_padding: Width | None = None,
) -> nn.Module:
    """Return blocks of 3 x 3 convolution, norm, ReLU and 2 x 2 pooling; the default is dataset distillation's ConvNet
    (Zhao et al., 2021).

    first_padding: of the first convolution, by default 1 as of the others. Their code has 3 for grey images of 28 x 28,
    which then become 32 x 32.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape[0], *channels]):
        pool = nn.AvgPool2d(2) if pooling == "average" else nn.MaxPool2d(2)
        normed: list[nn.Module] = [] if norm == "none" else [_conv_norm(norm, outputs)]
        padding = 1 if layers else first_padding or 1
        layers += [nn.Conv2d(inputs, outputs, 3, padding=padding), *normed, nn.ReLU(), pool]
    trunk = nn.Sequential(*layers, nn.Flatten())
    return Classifier(trunk, _width(trunk, shape), classes)


def _conv_norm(kind: ConvNorm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels, channels)  # one group per channel: instance norm with parameters


def _width(trunk: nn.Module, shape: Shape) -> int:
    with torch.inference_mode():
        return int(copy.deepcopy(trunk).eval()(torch.zeros(1, *shape)).shape[1])


Norm = Literal["batch", "group"]


@serves("image")
def resnet8(shape: Shape, classes: int, *, norm: Norm = "batch") -> nn.Module:
    """Return the CIFAR ResNet of depth 8 (He et al., 2016, section 4.2, n = 1)."""
    return _cifar_resnet(shape, classes, 1, norm)


@serves("image")
def resnet20(shape: Shape, classes: int, *, norm: Norm = "batch") -> nn.Module:
    """Return the CIFAR ResNet of depth 20 (He et al., 2016, section 4.2, n = 3)."""
    return _cifar_resnet(shape, classes, 3, norm)


@serves("image")
def resnet18_cifar(shape: Shape, classes: int, *, norm: Literal["batch", "group", "instance"] = "batch") -> nn.Module:
    """Return ResNet-18 with a 3 x 3 first convolution of stride 1 and no max-pooling, as in MOON and FedX, for CIFAR.

    With instance norm (with parameters), as in dataset distillation and FedLGD, for images of up to 32 pixels. Group
    norm has 32 groups (Wu and He, 2018).
    """
    from torchvision import models as zoo

    def layer(channels: int) -> nn.Module:
        return nn.GroupNorm(32, channels) if norm == "group" else _conv_norm(norm, channels)

    trunk = zoo.resnet18(weights=None, norm_layer=layer)
    trunk.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
    trunk.maxpool, trunk.fc = nn.Identity(), nn.Identity()
    return Classifier(trunk, 512, classes)


def _norm(kind: Norm, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(8, channels)


class PadChannels(nn.Module):
    """Adds channels of zeros to images, B x C x H x W."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        """Return the images with more channels."""
        return F.pad(x, (0, 0, 0, 0, self.before, self.after)) if self.before + self.after else x


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a parameter-free shortcut (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outputs)
        self.stride = stride
        self.extra = PadChannels((outputs - inputs) // 2, outputs - inputs - (outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.extra(x[:, :, :: self.stride, :: self.stride]))


def _cifar_resnet(shape: Shape, classes: int, blocks: int, norm: Norm) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False), _norm(norm, 16), nn.ReLU()]
    inputs = 16
    for outputs in (16, 32, 64):
        for block in range(blocks):
            layers.append(_Block(inputs, outputs, 2 if block == 0 and outputs > 16 else 1, norm))
            inputs = outputs
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64, classes)

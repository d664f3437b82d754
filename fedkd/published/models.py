"""The networks of the authors' code of published tables, written from their description; builders for `model.name`."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ..models.zoo import Classifier, Shape, serves
from ..streams import default_stream

Width = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


@serves("image")
def fedgen_cnn(shape: Shape, classes: int, *, torch_seed: Seed | None = None) -> nn.Module:
    """Return FedGen's network for MNIST (zhuangdizhu/FedGen): 26,434 weights. Its features have no activation.

    `torch_seed`: it starts with the weights that it has there after `torch.manual_seed` of this number.
    """
    if torch_seed is not None:
        with default_stream(torch.Generator().manual_seed(torch_seed)):
            return fedgen_cnn(shape, classes)
    layers: list[nn.Module] = []
    for inputs, outputs in ((shape[0], 6), (6, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    flat = 16 * math.ceil(shape[1] / 4) * math.ceil(shape[2] / 4)
    return Classifier(nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 32)), 32, classes)


@serves("image")
def dropout_cnn(shape: Shape, classes: int) -> nn.Module:
    """Return the CNN of PyTorch's old MNIST example: FedProto's, shaoxiongji's, AshwinRJ's: 21,840 weights."""
    convolutions = nn.Sequential(
        nn.Conv2d(shape[0], 10, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(10, 20, 5), nn.Dropout2d(), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    flat = 20 * math.prod((side - 4) // 2 // 2 - 2 for side in shape[1:])
    return Classifier(nn.Sequential(*convolutions, nn.Linear(flat, 50), nn.ReLU(), nn.Dropout()), 50, classes)


@serves("image")
def dropout_mlp(shape: Shape, classes: int, *, hidden: Width = 200) -> nn.Module:
    """Return the perceptron of shaoxiongji's (hidden 200) and AshwinRJ's (64) code: dropout before the ReLU."""
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.Dropout(), nn.ReLU())
    return Classifier(trunk, hidden, classes)


@serves("image")
def niid_cnn(shape: Shape, classes: int) -> nn.Module:
    """Return NIID-Bench's simple-cnn: 44,426 weights for MNIST, 62,006 for CIFAR-10."""
    flat = 16 * math.prod(((side - 4) // 2 - 4) // 2 for side in shape[1:])
    trunk = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
    )  # fmt: skip
    return Classifier(trunk, 84, classes)


class _WithSoftmax(Classifier):
    """A classifier whose output is probabilities, to which the loss applies a second softmax."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__(features, width, classes)
        self.classifier = nn.Sequential(self.classifier, nn.Softmax(dim=1))  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, B x C."""
        return torch.as_tensor(self.classifier(self.features(images)))


@serves("image")
def lg_mlp(shape: Shape, classes: int, *, torch_seed: Seed | None = None) -> nn.Module:
    """Return LG-FedAvg's perceptron for MNIST, which ends in a softmax: 633,226 weights.

    `torch_seed`: all nodes start with the weights that it has after `torch.manual_seed` of this number.
    """
    if torch_seed is not None:
        with default_stream(torch.Generator().manual_seed(torch_seed)):
            return lg_mlp(shape, classes)
    widths = [math.prod(shape), 512, 256, 256, 128]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return _WithSoftmax(nn.Sequential(*layers), widths[-1], classes)


@serves("image")
def feddf_resnet8(shape: Shape, classes: int) -> nn.Module:
    """Return FedDF's ResNet-8 for CIFAR-10, whose shortcuts between widths are convolutions: 78,042 weights."""
    from torchvision.models.resnet import BasicBlock

    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers.append(BasicBlock(16, 16))
    for inputs, outputs in ((16, 32), (32, 64)):
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))
        layers.append(BasicBlock(inputs, outputs, 2, shortcut))
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(trunk, 64, classes)

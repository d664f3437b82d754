"""Conditional generators: they make an image, or a feature vector of a classifier, from noise and a label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.zoo import Shape


class ImageGenerator(nn.Module):
    """FedFTG's conditional generator (Zhang et al., 2022, the authors' CGeneratorA), for images of any size.

    noise: length of z (100 for CIFAR-10); width: channels of the last hidden map (64). It starts from a quarter of the
    image's height and width (rounded up) and doubles them twice. Its last batch norm, without parameters, gives
    normalised images, so they are not clamped. For sides that are multiples of 4 it equals the authors' network.
    """

    def __init__(self, noise: int, classes: int, shape: Shape, width: int = 64) -> None:
        super().__init__()
        channels, height, wide = shape
        self.classes = classes
        self.noise = noise
        half = (-(-height // 2), -(-wide // 2))
        self.start = (2 * width, -(-height // 4), -(-wide // 4))
        area = width * self.start[1] * self.start[2]
        self.from_noise = nn.Linear(noise, area)
        self.from_label = nn.Linear(classes, area)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(half),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample((height, wide)),
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return normalised images, B x channels x H x W, from noise, B x noise, and labels, B."""
        onehot = F.one_hot(labels, self.classes).to(noise.dtype)
        both = torch.cat([self.from_noise(noise), self.from_label(onehot)], dim=1)
        images: Tensor = self.layers(both.view(-1, *self.start))
        return images


class FeatureGenerator(nn.Module):
    """FedGen's generator (Zhu et al., 2021, the authors' code): one hidden layer, from noise and label to features."""

    def __init__(self, noise: int, classes: int, hidden: int, features: int) -> None:
        super().__init__()
        self.classes = classes
        self.noise = noise
        self.layers = nn.Sequential(
            nn.Linear(noise + classes, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, features)
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return features, B x D, from noise, B x noise, and labels, B."""
        onehot = F.one_hot(labels, self.classes).to(noise.dtype)
        features: Tensor = self.layers(torch.cat([noise, onehot], dim=1))
        return features

"""Conditional generators of rows and series, from noise and a label to encoded samples; of images: `generators`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import Form
from ..errors import InputError
from ..models.tables import one_hot
from .generators import ImageGenerator

_TEMPERATURE = 0.2  # of the categories, as in CTGAN (Xu et al., 2019)
_WIDTH = 256


def generator_of(form: Form, noise: int, classes: int, width: int) -> nn.Module:
    """Return FedFTG's generator for samples of this form. Raises InputError for tokens."""
    if form.kind == "image":
        channels, height, wide = form.shape
        return ImageGenerator(noise, classes, (channels, height, wide), width)
    if form.kind == "series":
        return SeriesGenerator(noise, classes, form, width)
    if form.kind == "tokens":
        raise InputError("tokens have no gradient, so a generator cannot make them.")
    return RowGenerator(noise, classes, form)


class RowGenerator(nn.Module):
    """Makes rows, or arrays of any shape: two hidden layers of 256 with batch norm, as wide as CTGAN's.

    Numbers: a last batch norm without parameters, as FedFTG's images. Categories: as probabilities, B x (numbers + all
    codes), in training one-hot draws by the straight-through Gumbel-softmax (Jang et al., 2017), else the likeliest.
    The draws are torch's default stream's. Indicators of missing numbers are numbers here.
    """

    def __init__(self, noise: int, classes: int, form: Form) -> None:
        super().__init__()
        self.form, self.classes = form, classes
        self.numbers = form.numbers if form.kind == "table" else math.prod(form.shape)
        self.layers = nn.Sequential(
            nn.Linear(noise + classes, _WIDTH), nn.BatchNorm1d(_WIDTH), nn.ReLU(),
            nn.Linear(_WIDTH, _WIDTH), nn.BatchNorm1d(_WIDTH), nn.ReLU(),
            nn.Linear(_WIDTH, self.numbers + sum(form.cards)),
        )  # fmt: skip
        self.scale = nn.BatchNorm1d(self.numbers, affine=False) if self.numbers else nn.Identity()

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return samples from noise, B x noise, and labels, B."""
        given = torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], dim=1)
        numbers, *categories = self.layers(given).split([self.numbers, *self.form.cards], dim=1)
        drawn = [
            F.gumbel_softmax(one, _TEMPERATURE, hard=True) if self.training else F.one_hot(one.argmax(1), one.shape[1])
            for one in categories
        ]
        rows = torch.cat([self.scale(numbers), *(one.to(numbers.dtype) for one in drawn)], dim=1)
        return rows.view(-1, *self.form.shape) if self.form.kind != "table" else rows


class SeriesGenerator(nn.Module):
    """Makes series of full length: `ImageGenerator` with one dimension, and a mask of 1."""

    def __init__(self, noise: int, classes: int, form: Form, width: int = 64) -> None:
        super().__init__()
        channels, steps = form.shape[0] - 1, form.shape[1]
        self.classes, self.start = classes, (2 * width, -(-steps // 4))
        area = width * self.start[1]
        self.from_noise, self.from_label = nn.Linear(noise, area), nn.Linear(classes, area)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(2 * width), nn.Upsample(-(-steps // 2)),
            nn.Conv1d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm1d(2 * width), nn.LeakyReLU(0.2),
            nn.Upsample(steps),
            nn.Conv1d(2 * width, width, 3, padding=1), nn.BatchNorm1d(width), nn.LeakyReLU(0.2),
            nn.Conv1d(width, channels, 3, padding=1), nn.Tanh(), nn.BatchNorm1d(channels, affine=False),
        )  # fmt: skip

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return series and masks, B x (channels + 1) x T, from noise, B x noise, and labels, B."""
        given = F.one_hot(labels, self.classes).to(noise.dtype)
        both = torch.cat([self.from_noise(noise), self.from_label(given)], dim=1)
        series: Tensor = self.layers(both.view(-1, *self.start))
        return torch.cat([series, torch.ones_like(series[:, :1])], dim=1)


def as_codes(samples: Tensor, form: Form) -> Tensor:
    """Return samples of a generator as models get real ones: rows with the likeliest code of each category."""
    if form.kind != "table" or not form.cards:
        return samples
    numbers, *categories = samples.split([form.numbers, *form.cards], dim=1)
    return torch.cat([numbers, *(one.argmax(1, keepdim=True).to(numbers.dtype) for one in categories)], dim=1)


@torch.no_grad()
def takes_probabilities(model: nn.Module, form: Form) -> bool:
    """Return whether a model gives the same for rows with codes and with categories as probabilities."""
    if form.kind != "table" or not form.cards:
        return True
    device = next(model.parameters()).device
    rows = form.drawn(4, torch.Generator().manual_seed(0)).to(device)
    training = model.training
    try:
        found = model.eval()(one_hot(rows, form))
        return bool(torch.allclose(found, model(rows), 1e-4, 1e-5))
    except RuntimeError:  # it has a fixed number of columns
        return False
    finally:
        model.train(training)

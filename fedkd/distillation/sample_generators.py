"""Conditional generators of rows, series and texts, from noise and a label to samples; of images: `generators`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import MASKED, PAD, START, Form
from ..models.tables import one_hot
from .generators import ImageGenerator

_TEMPERATURE = 0.2  # of the categories, as in CTGAN (Xu et al., 2019)
_WIDTH = 256
_TOKENS = 32  # the most of a generated text


def generator_of(form: Form, noise: int, classes: int, width: int) -> nn.Module:
    """Return FedFTG's generator for samples of this form."""
    if form.kind == "image":
        channels, height, wide = form.shape
        return ImageGenerator(noise, classes, (channels, height, wide), width)
    if form.kind == "series":
        return SeriesGenerator(noise, classes, form, width)
    if form.kind == "tokens":
        return TextGenerator(noise, classes, form, width)
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


class TextGenerator(nn.Module):
    """Makes texts as probabilities over the vocabulary, without padding, starts and masks.

    A text has as many tokens as the set's longest, and 32 at most: on real sites the server does not know how long
    texts are. Probabilities are those of softmax, without draws, so a word is a mean of a model's embeddings.
    """

    def __init__(self, noise: int, classes: int, form: Form, width: int = 64) -> None:
        super().__init__()
        self.classes, self.start = classes, (width, min(form.shape[0], _TOKENS))
        self.from_noise = nn.Linear(noise + classes, math.prod(self.start))
        self.layers = nn.Sequential(
            nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), nn.LeakyReLU(0.2),
            nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.to_words = nn.Linear(width, form.vocabulary)
        never = torch.isin(torch.arange(form.vocabulary), torch.tensor([PAD, START, MASKED]))
        self.register_buffer("never", never, persistent=False)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return texts, B x L x V, from noise, B x noise, and labels, B."""
        given = torch.cat([noise, F.one_hot(labels, self.classes).to(noise.dtype)], dim=1)
        tokens = self.layers(self.from_noise(given).view(-1, *self.start)).transpose(1, 2)
        return torch.softmax(self.to_words(tokens).masked_fill(self.never, -math.inf), dim=2)


def as_codes(samples: Tensor, form: Form) -> Tensor:
    """Return samples of a generator as models get real ones: with the likeliest code of each category, or word."""
    if form.kind == "tokens":
        return samples.argmax(2)
    if form.kind != "table" or not form.cards:
        return samples
    numbers, *categories = samples.split([form.numbers, *form.cards], dim=1)
    return torch.cat([numbers, *(one.argmax(1, keepdim=True).to(numbers.dtype) for one in categories)], dim=1)


@torch.no_grad()
def takes_probabilities(model: nn.Module, form: Form) -> bool:
    """Return whether a model gives the same for categories or words as codes and as probabilities."""
    if form.kind != "tokens" and not form.cards:
        return True
    device = next(model.parameters()).device
    samples = form.drawn(4, torch.Generator().manual_seed(0)).to(device)
    if form.kind == "tokens":
        samples = samples[:, :_TOKENS]
        shares = F.one_hot(samples, form.vocabulary).float()
    else:
        shares = one_hot(samples, form)
    training = model.training
    try:
        found = model.eval()(shares)
        return bool(torch.allclose(found, model(samples), 1e-4, 1e-5))
    except Exception:  # whatever a model of a library or a user says to what it cannot take
        return False
    finally:
        model.train(training)

"""A linear model and a few images for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedkd.data.samples import Samples
from fedkd.learning.batches import Preprocess
from fedkd.streams import torch_stream

from .codecs import pixel_codec

PLAIN = Preprocess(pixel_codec(0.25, 0.5), "none", torch.device("cpu"))


def images(count: int = 10, size: int = 4) -> Samples:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, size, size)).astype(np.uint8)
    return Samples(pixels, rng.integers(0, 3, count))


def model() -> nn.Module:
    linear = nn.Linear(16, 3)
    generator = torch_stream(0, 0, 0, "model")
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return nn.Sequential(nn.Flatten(), linear)

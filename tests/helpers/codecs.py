"""Codecs for tests."""

from __future__ import annotations

import numpy as np

from fedkd.data.codec import Codec
from fedkd.data.spec import DataSpec


def pixel_codec(mean: float = 0.5, deviation: float = 0.5, shape: tuple[int, int, int] = (1, 4, 4)) -> Codec:
    """Return the codec of uint8 images with the same mean and deviation in each channel."""
    spec = DataSpec(kind="image", shape=shape, largest=255.0)
    return Codec(spec, np.full(shape[0], mean), np.full(shape[0], deviation))

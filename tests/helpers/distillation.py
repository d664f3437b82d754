"""A small network and small sets to distil, without random numbers of torch's own."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.samples import Samples
from fedkd.data.spec import Form
from fedkd.distillation.virtual_images import RealImages
from fedkd.learning.batches import Preprocess
from fedkd.models.build import build
from fedkd.streams import torch_stream


def det(shape: tuple[int, ...], a: float, b: float, dtype: torch.dtype = torch.float32) -> Tensor:
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(a * i + b).view(shape).to(dtype)


def small_net(classes: int = 4, norm: str = "instance", side: int = 16) -> nn.Module:
    model = build("convnet", {"channels": [8, 8], "norm": norm}, Form("image", (3, side, side)), classes)
    with torch.no_grad():
        for k, (name, parameter) in enumerate(model.named_parameters()):
            parameter.copy_(0.1 * det(tuple(parameter.shape), 0.05, k))
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter.add_(1)
    return model


class _Plain:
    """Preprocess that leaves float images as they are and scales uint8 ones to 0..1."""

    device = torch.device("cpu")

    def __call__(self, images: np.ndarray, generator: torch.Generator | None = None) -> Tensor:
        batch = torch.from_numpy(images)
        return batch if batch.is_floating_point() else batch.float() / 255


PLAIN: Preprocess = _Plain()  # type: ignore[assignment]


def stream(name: str = "test") -> torch.Generator:
    return torch_stream(0, 0, "server", name)


def truth_of(counts: list[int], side: int = 16, seed: int = 0) -> RealImages:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.integers(0, 256, (len(labels), 3, side, side)).astype(np.uint8)
    images[..., 0] = (labels * 60)[:, None, None]
    return RealImages(Samples(images, labels.astype(np.int64)), PLAIN)

"""The image generator of FedFTG: its published outputs and sizes, and the diversity of its images."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from helpers.published import LABELS, checksum, det, gen, noise

from fedkd.distillation.generators import FeatureGenerator, ImageGenerator
from fedkd.learning.losses import diversity_loss


@pytest.fixture(autouse=True)
def _modules_may_draw() -> Iterable[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize(("metric", "value"), [("l1", 0.999384), ("l2", 0.999149), ("cosine", 0.999142)])
def test_the_diversity_loss_has_the_published_value(metric: str, value: float) -> None:
    found = diversity_loss(det((5, 3, 4, 4), 0.5, 0.1), det((5, 7), 0.9, 0.2), metric)  # type: ignore[arg-type]
    assert float(found) == pytest.approx(value, abs=1e-6)


def test_the_generator_has_the_published_outputs_and_sizes() -> None:
    generator = gen()
    _, norm, dot = checksum([generator.train()(noise(0), LABELS)])
    assert (norm, dot) == pytest.approx((39.190342, -2.070756), rel=2e-5)
    total, norm, dot = checksum([generator.eval()(noise(0), LABELS)])
    assert (total, norm, dot) == pytest.approx((-270.253282, 15.500117, -13.057646), rel=1e-5)
    for nz, classes, size in ((100, 10, 682_499), (256, 100, 1_690_115)):
        assert sum(p.numel() for p in ImageGenerator(nz, classes, (3, 32, 32)).parameters()) == size
    for shape in ((1, 28, 28), (1, 8, 8), (3, 30, 37), (1, 5, 4)):
        images = ImageGenerator(7, 3, shape, width=2)(torch.zeros(2, 7), torch.tensor([0, 2]))
        assert images.shape == (2, *shape)


def test_the_generator_of_features_is_two_layers_by_loops() -> None:
    generator = FeatureGenerator(2, 3, 4, 5).double().eval()
    first, norm, _, second = generator.layers
    noise = det((6, 2), 0.7, 0.2)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    with torch.no_grad():
        norm.running_mean.copy_(det((4,), 0.3, 0.1))
        norm.running_var.fill_(4 - norm.eps)
        found = generator(noise, labels)
        for row, z, label in zip(found, noise, labels.tolist(), strict=True):
            inputs = [*z.tolist(), *(float(label == c) for c in range(3))]
            hidden = [
                max(0.0, (sum(w * x for w, x in zip(weights, inputs, strict=True)) + b - mean) / 2)
                for weights, b, mean in zip(
                    first.weight.tolist(), first.bias.tolist(), norm.running_mean.tolist(), strict=True
                )
            ]
            right = [
                sum(w * h for w, h in zip(weights, hidden, strict=True)) + b
                for weights, b in zip(second.weight.tolist(), second.bias.tolist(), strict=True)
            ]
            assert row.tolist() == pytest.approx(right, rel=1e-12)

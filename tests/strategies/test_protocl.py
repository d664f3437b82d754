"""ProtoCL: prototypes and their concentrations by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fedkd.strategies.protocl import cluster, prototype_loss
from fedkd.streams import torch_stream


def test_prototypes_and_their_concentrations_by_loops() -> None:
    features = F.normalize(torch.randn(40, 5, generator=torch_stream(0, 0, 0, "z"), dtype=torch.float64), dim=1)
    found = cluster(features, 4, 0.1, 10.0, 0)
    phi = []
    for c in range(4):
        members = [z for z, of in zip(features, found.of_image.tolist(), strict=True) if of == c]
        centre = sum(members) / len(members)
        torch.testing.assert_close(found.centroids[c], centre / centre.norm())
        phi.append(sum(float((z - centre).norm()) for z in members) / (len(members) * math.log(len(members) + 10)))
    cut = np.clip(phi, np.percentile(phi, 10), np.percentile(phi, 90))
    right = [0.1 * p / cut.mean() for p in cut]
    assert found.concentrations.tolist() == pytest.approx(right, rel=1e-9)
    chosen, total = torch.tensor([3, 17, 39]), 0.0
    for row in chosen.tolist():
        logits = [float(features[row] @ found.centroids[c]) / right[c] for c in range(4)]
        total -= (logits[int(found.of_image[row])] - math.log(sum(math.exp(z) for z in logits))) / 3
    value = prototype_loss(features[chosen], found.centroids, found.concentrations, found.of_image[chosen])
    assert float(value) == pytest.approx(total, rel=1e-9)
    again = cluster(features, 4, 0.1, 10.0, 0)
    assert torch.equal(again.of_image, found.of_image)
    everyone = cluster(features[:6], 6, 0.1, 10.0, 0)  # a cluster an image: no spread at all
    assert everyone.concentrations.tolist() == pytest.approx([0.1] * 6)
    twins = torch.cat([features[:20], features[:1]])  # a cluster of two images that are alike has no spread
    assert float(cluster(twins, 15, 0.1, 10.0, 0).concentrations.min()) > 1e-5

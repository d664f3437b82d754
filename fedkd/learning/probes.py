"""Measures of frozen features: a linear probe, nearest neighbours, and the angle between two models' embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..streams import default_stream
from .batches import shuffled


def linear_probe(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    stream: torch.Generator,
    *,
    epochs: int = 100,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-6,
) -> float:
    """Return the test accuracy of a linear classifier on frozen features, N x D, after its last epoch.

    FedX's protocol (Han et al., 2022, their code): Adam 1e-3, weight decay 1e-6, batches of 64, 100 epochs, features
    not normalised. `stream` draws the initial weights and the shuffles.
    """
    with default_stream(stream):
        probe = nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.Adam(probe.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(epochs):
        for chosen in shuffled(len(labels), batch_size, stream):
            optimizer.zero_grad()
            F.cross_entropy(probe(features[chosen]), labels[chosen]).backward()
            optimizer.step()
    with torch.no_grad():
        return float((probe(test_features).argmax(1) == test_labels).double().mean())


def nearest_neighbours(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    neighbours: int = 200,
    temperature: float = 0.1,
) -> float:
    """Return the accuracy of a vote of the nearest images by cosine, each with weight exp(cosine / temperature).

    The kNN measure of FedU2's code: 200 neighbours (or all, if there are fewer), temperature 0.1.
    """
    bank = F.normalize(features, dim=1)
    onehot = F.one_hot(labels, classes).to(features.dtype)
    right = 0
    for part, wanted in zip(test_features.split(500), test_labels.split(500), strict=True):
        cosines, nearest = (F.normalize(part, dim=1) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = ((cosines / temperature).exp()[:, :, None] * onehot[nearest]).sum(1)
        right += int((votes.argmax(1) == wanted).sum())
    return right / len(test_labels)


def mean_angle(first: Tensor, second: Tensor) -> float:
    """Return the mean angle between rows of two models' embeddings of the same images, N x D, in degrees."""
    cosines = F.cosine_similarity(first.double(), second.double(), dim=1)
    return float(torch.rad2deg(torch.acos(cosines.clamp(-1, 1))).mean())

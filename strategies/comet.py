"""COMET: each client learns from the mean soft labels of its cluster of clients.

Cho, Wang, Chirvolu, Joshi: Communication-Efficient and Model-Heterogeneous Personalized Federated Learning via
Clustered Knowledge Transfer, IEEE JSTSP 2023 (first as arXiv:2109.08119). The paper's own code was not found. This file
follows the public re-implementation in SCARLET's code (clusters for each sample, KL, the order of a round).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedkd import (
    Client,
    Count,
    Loss,
    ModelLoss,
    Outputs,
    Own,
    Positive,
    RelayClient,
    RelayStrategy,
    Round,
    kl_from_probabilities,
)

Distance = Literal["kl", "l2"]


class COMETClient(RelayClient):
    """The client half of DS-FL, but with a weight for the distillation loss."""

    def distillation_loss(self) -> Loss:
        """Return lambda KL(t || p), or lambda ||t - p||^2 summed over classes; means over the batch."""
        method: COMET = self.strategy
        return ModelLoss(partial(_towards, weight=method.regularization, distance=method.distance))


def _towards(
    outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs], weight: float, distance: Distance
) -> Tensor:
    if distance == "kl":
        return weight * kl_from_probabilities(outputs.logits, targets)
    return weight * (torch.softmax(outputs.logits, 1) - targets).square().sum(1).mean()


def cluster_targets(knowledge: Tensor, clusters: int, by: Literal["sample", "client"], seed: int) -> Tensor:
    """Return for each client the mean soft labels of its cluster, N x P x C, from soft labels N x P x C.

    `sample`: one k-means over the clients for each public image; `client`: one k-means for all images together.
    """
    clients, samples, classes = knowledge.shape
    points = knowledge.double().numpy()
    if by == "client":
        points = points.reshape(clients, 1, samples * classes)
    means = np.empty_like(points)
    with threadpool_limits(limits=1):  # with several threads, the order of sums changes
        for sample in range(points.shape[1]):
            rows = points[:, sample]
            count = min(clusters, len(np.unique(rows, axis=0)))
            assigned = KMeans(count, random_state=seed, n_init=1).fit_predict(rows)
            for cluster in range(count):
                members = assigned == cluster
                means[members, sample] = rows[members].mean(0)
    return torch.from_numpy(means.reshape(clients, samples, classes)).float()


@dataclass(kw_only=True)
class COMET(RelayStrategy):
    """COMET (Cho et al., 2023), after the public re-implementation; models may differ.

    clusters: the number of clusters. cluster_by: `sample` (the re-implementation: one clustering of the clients for
    each image) or `client` (one clustering by all their soft labels). regularization: lambda, the weight of the
    distillation loss. distance: `kl` (the re-implementation) or `l2`. Clients distil the last targets, train, and
    predict on the next subset.

    Deviation: the server sends each client only the centroid of its own cluster. The re-implementation sends all, and
    the client takes the nearest. So the traffic is 1 / clusters of that, and the targets are the same if all nodes take
    part in each round. A node that was not in the last cohort has no cluster yet, and only trains. `personal/accuracy`
    is measured after local training, `personal_after_distillation/accuracy` before it.
    """

    client: ClassVar[type[Client]] = COMETClient
    balances: ClassVar[bool] = True
    clusters: Count = 2
    cluster_by: Literal["sample", "client"] = "sample"
    regularization: Positive = 1.0
    distance: Distance = "kl"

    def run_round(self, federation: Round) -> None:
        """Relay, cluster the knowledge, store each node's targets for the next round."""
        knowledge = self.relay(federation)
        seed = int(torch.randint(2**31, (1,), generator=federation.stream("clusters")))
        targets = cluster_targets(torch.stack(list(knowledge.values())), self.clusters, self.cluster_by, seed)
        self.targets = {str(node): target for node, target in zip(knowledge, targets, strict=True)}

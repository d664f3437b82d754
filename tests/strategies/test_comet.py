"""COMET: the targets of clusters."""

from __future__ import annotations

import torch

from fedkd.strategies.comet import cluster_targets


def test_clusters_a_sample_and_a_client() -> None:
    q = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
    knowledge = torch.stack([q, q[[0, 2, 1, 3]]], dim=1)  # clients x 2 samples x classes: other pairs on each sample
    targets = cluster_targets(knowledge, 2, "sample", 0)
    high, low = torch.tensor([0.85, 0.15]), torch.tensor([0.15, 0.85])
    torch.testing.assert_close(targets[:, 0], torch.stack([high, high, low, low]))
    torch.testing.assert_close(targets[:, 1], torch.stack([high, low, high, low]))
    same = torch.stack([q, q], dim=1)
    torch.testing.assert_close(cluster_targets(same, 2, "client", 0)[:, 1], torch.stack([high, high, low, low]))
    torch.testing.assert_close(cluster_targets(same, 1, "sample", 0)[0], q.mean(0).expand(2, 2))  # FedMD's mean
    torch.testing.assert_close(cluster_targets(same, 9, "client", 0), same)  # more clusters than clients
    alike = same[:1].expand(4, -1, -1)
    torch.testing.assert_close(cluster_targets(alike, 3, "sample", 0), alike)

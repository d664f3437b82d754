"""FedProtoCL: MoCo with a second contrastive loss, between clusters of images.

Li, Zhou, Xiong, Hoi: Prototypical Contrastive Learning of Unsupervised Representations, ICLR 2021, arXiv:2005.04966,
equations 11 and 12. As far as is known, this is the base that FedX calls FedProtoCL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, NamedTuple, cast

import torch
from pydantic import Field
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional as F

from fedkd import Client, Encoder, Positive, stream_seed

from .moco import MoCo, MoCoClient

Count = Annotated[int, Field(ge=2)]
_BATCH = 500


class Clusters(NamedTuple):
    """One clustering of a node's images: centroids of length 1, k x D; concentrations, k; each image's cluster, N."""

    centroids: Tensor
    concentrations: Tensor
    of_image: Tensor


class ProtoCLClient(MoCoClient):
    """Clusters the key encoder's projections of its images before each epoch."""

    def begin_epoch(self) -> None:
        """Cluster the key encoder's projections, once for each number of clusters."""
        method, images = cast(ProtoCL, self.method), self.data.images
        self.keys.eval()
        with torch.no_grad():
            parts = [
                F.normalize(self.keys(self.environment.preprocess(images[start : start + _BATCH])), dim=1)
                for start in range(0, len(images), _BATCH)
            ]
        self.keys.train()
        seed = stream_seed(self.environment.config.seed, self.round, self.node, "clusters") % 2**32
        self.clusterings = [
            cluster(torch.cat(parts), min(k, len(images)), method.temperature, method.alpha, seed)
            for k in method.clusters
        ]

    def contrast(self, encoder: Encoder, views: tuple[Tensor, Tensor], first: Tensor, second: Tensor) -> Tensor:
        """Return MoCo's loss plus the prototype loss of the first view, the mean over clusterings."""
        queries = F.normalize(first, dim=1)
        losses = [prototype_loss(queries, c, self.chosen) for c in self.clusterings]
        return super().contrast(encoder, views, first, second) + torch.stack(losses).mean()


def cluster(features: Tensor, count: int, temperature: float, alpha: float, seed: int) -> Clusters:
    """Return k-means of features, N x D of length 1, and concentrations phi (Li et al., 2021, equation 12).

    phi_c = sum_{z in c} ||z - c||_2 / (Z log(Z + alpha)), with Z images in c. A cluster of one image gets the largest
    phi of the others. phi is clipped to its 10th and 90th percentiles, as in the authors' code (from memory), and to at
    least a thousandth of the largest, because equal images have phi 0. Then it is scaled to the mean `temperature`.
    """
    with threadpool_limits(limits=1):  # with several threads, the order of sums changes
        found = KMeans(count, n_init=1, random_state=seed).fit(features.cpu().double().numpy())
    centres = torch.from_numpy(found.cluster_centers_).to(features)
    of_image = torch.from_numpy(found.labels_).long().to(features.device)
    distances = (features - centres[of_image]).norm(dim=1)
    sizes = torch.bincount(of_image, minlength=count).to(features)
    sums = torch.zeros_like(sizes).index_add_(0, of_image, distances)
    phi = sums / (sizes.clamp(min=1) * torch.log(sizes + alpha))
    several = phi[sizes > 1]
    largest = several.max() if len(several) and several.max() > 0 else phi.new_ones(())
    phi = torch.where(sizes > 1, phi, largest)
    phi = phi.clamp(phi.quantile(0.1), phi.quantile(0.9)).clamp(min=float(largest) / 1000)
    return Clusters(F.normalize(centres, dim=1), temperature * phi / phi.mean(), of_image)


def prototype_loss(queries: Tensor, clusters: Clusters, chosen: Tensor) -> Tensor:
    """Return the cross-entropy of v . c_j / phi_j over all clusters j, with the image's own cluster as the label.

    queries v: B x D of length 1; chosen: their positions among the clustered images, B.
    """
    logits = queries @ clusters.centroids.T / clusters.concentrations
    return F.cross_entropy(logits, clusters.of_image[chosen.to(clusters.of_image.device)])


@dataclass(kw_only=True)
class ProtoCL(MoCo):
    """Prototypical contrastive learning (Li et al., 2021) on each node; FedAvg of the query encoder.

    clusters: the number of clusters of each clustering; FedX's numbers are not known, these are our choice. momentum
    0.999, temperature 0.1, alpha 10: the authors' (the last from memory). All other clusters are negatives. The authors
    draw r = 16384 of them, which is more than a node here has. Each epoch makes new clusters with the key encoder.
    """

    client: ClassVar[type[Client]] = ProtoCLClient
    clusters: Annotated[list[Count], Field(min_length=1)] = field(default_factory=lambda: [10, 20])
    alpha: Annotated[float, Field(ge=1)] = 10.0
    momentum: Annotated[float, Field(ge=0, le=1)] = 0.999
    temperature: Positive = 0.1

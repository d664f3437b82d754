"""FedProtoCL: MoCo with a second contrastive loss, between clusters of images.

Li, Zhou, Xiong, Hoi: Prototypical Contrastive Learning of Unsupervised Representations, ICLR 2021, arXiv:2005.04966,
equations 11 and 12. As far as is known, this is the base that FedX calls FedProtoCL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, NamedTuple, cast

import torch
from pydantic import Field
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import Batch, Client, Contrast, Kept, Positive, stream_seed

from .moco import KEYS, MoCo, MoCoClient

Count = Annotated[int, Field(ge=2)]
_BATCH = 500


class Clusters(NamedTuple):
    """One clustering of a node's images: centroids of length 1, k x D; concentrations, k; each image's cluster, N."""

    centroids: Tensor
    concentrations: Tensor
    of_image: Tensor


class ProtoCLClient(MoCoClient):
    """Clusters the key encoder's projections of its images before each epoch."""

    alone_because = "before each epoch it clusters what its own key encoder makes of its images"

    def batches(self) -> Iterator[Batch]:
        """Yield the base's batches, each with the clusterings of its epoch, which read the key encoder."""
        for step, batch in enumerate(super().batches()):
            if step % self.batches_in_epoch == 0:
                clusterings = self._clusterings()
            found: dict[str, Tensor] = {}
            for number, c in enumerate(clusterings):
                found |= {f"centroids/{number}": c.centroids, f"concentrations/{number}": c.concentrations}
                found[f"clusters/{number}"] = c.of_image[batch["positions"].to(c.of_image.device)]
            yield {**batch, **found}

    def _clusterings(self) -> list[Clusters]:
        """Cluster the key encoder's projections, once for each number of clusters."""
        method, images, keys = cast(ProtoCL, self.method), self.data.inputs, self.networks[KEYS]
        keys.eval()
        with torch.no_grad():
            parts = [
                F.normalize(keys(self.environment.preprocess(images[start : start + _BATCH])), dim=1)
                for start in range(0, len(images), _BATCH)
            ]
        keys.train()
        seed = stream_seed(self.environment.config.seed, self.round, self.node, "clusters") % 2**32
        return [
            cluster(torch.cat(parts), min(k, len(images)), method.temperature, method.alpha, seed)
            for k in method.clusters
        ]

    def contrast(self) -> Contrast:
        """Return MoCo's loss plus the prototype loss of the first view, the mean over clusterings."""
        clusterings = len(cast(ProtoCL, self.method).clusters)
        return partial(prototypical_contrast, contrast=super().contrast(), clusterings=clusterings)


def prototypical_contrast(
    networks: nn.ModuleDict,
    batch: Batch,
    kept: Kept,
    first: Tensor,
    second: Tensor,
    *,
    contrast: Contrast,
    clusterings: int,
) -> Tensor:
    """Return another contrast plus the prototype loss of the first view, the mean over clusterings."""
    queries = F.normalize(first, dim=1)
    parts = ("centroids", "concentrations", "clusters")
    losses = [prototype_loss(queries, *(batch[f"{part}/{n}"] for part in parts)) for n in range(clusterings)]
    return contrast(networks, batch, kept, first, second) + torch.stack(losses).mean()


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


def prototype_loss(queries: Tensor, centroids: Tensor, concentrations: Tensor, clusters: Tensor) -> Tensor:
    """Return the cross-entropy of v . c_j / phi_j over all clusters j, with the image's own cluster as the label.

    queries v: B x D of length 1; centroids c: k x D; concentrations phi: k; clusters: of the images, B.
    """
    return F.cross_entropy(queries @ centroids.T / concentrations, clusters)


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

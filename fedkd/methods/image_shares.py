"""A node's share of the federation's images, for methods that weight a node's regulariser by it."""

from __future__ import annotations

from ..core.client import GlobalModelClient
from ..core.round import Round
from ..messages.payload import IMAGES, Expected, Payload

_MEAN_IMAGES = "mean_images"


class SharesClient(GlobalModelClient):
    """A client that reports its number of images before round 1, and computes its share in later requests."""

    def count(self, request: Payload) -> Payload:
        """Return the number of images."""
        return Payload(numbers={"examples": len(self.data.labels)})

    def share_of(self, numbers: dict[str, float]) -> float:
        """Return n_k divided by the mean over all nodes, which a request may contain; 1 if it does not."""
        mean = numbers.get(_MEAN_IMAGES)
        return len(self.data.labels) / mean if mean else 1.0


def mean_images(federation: Round) -> float:
    """Return the mean number of images of the nodes that answer. Called in `prepare`, where the cohort is all nodes."""
    expect = Expected(numbers={"examples": IMAGES})
    counts = [reply.numbers["examples"] for _, reply in federation.ask("count", expect=expect)]
    return sum(counts) / len(counts)


def share_numbers(mean: float | None) -> dict[str, float]:
    """Return the mean number of images as a payload's numbers; empty if it is None."""
    return {} if mean is None else {_MEAN_IMAGES: mean}

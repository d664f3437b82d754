"""Client sampling: which nodes take part in a round, and which are measured at its end."""

from __future__ import annotations

from collections.abc import Sequence

from ..streams import numpy_stream


def draw_nodes(nodes: Sequence[int], count: int | None, seed: int, number: int, purpose: str) -> list[int]:
    """Return `count` of the nodes, ascending, drawn by the server's stream of a round; all where it is None."""
    if count is None or count >= len(nodes):
        return list(nodes)
    rng = numpy_stream(seed, number, "server", purpose)
    return sorted(nodes[i] for i in rng.choice(len(nodes), count, replace=False))

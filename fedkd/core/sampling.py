"""What is drawn for a round: the nodes that take part, those that are measured at its end, and their epochs."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from ..streams import numpy_stream

MOST_MEASURED = 100  # nodes, if the config does not set `evaluate.fraction`


def sample_cohort(nodes: Sequence[int], config: Config, number: int) -> list[int]:
    """Return the cohort of a round, ascending: `cohort` nodes, uniformly without replacement; by default all nodes."""
    return _sample(nodes, config.cohort, config.seed, number, "cohort")


def sample_measured(nodes: Sequence[int], config: Config, number: int) -> list[int]:
    """Return the nodes that are measured after a round, ascending; none if `evaluate.every` skips the round."""
    if number % config.evaluate.every and number != config.rounds:
        return []
    fraction = config.evaluate.fraction
    count = MOST_MEASURED if fraction is None else max(1, round(fraction * len(nodes)))
    return _sample(nodes, count, config.seed, number, "evaluate")


def sample_epochs(config: Config, number: int, node: int) -> int:
    """Return a node's epochs of local training in a round: `train.epochs`, or fewer if it is a straggler.

    With the probability `faults.partial_work` they are uniform on 1 .. epochs - 1 (Li et al., 2020, and Flower's
    baseline of FedProx).
    """
    if not config.faults.partial_work:
        return config.train.epochs
    rng = numpy_stream(config.seed, number, node, "faults/partial-work")
    straggles = rng.random() < config.faults.partial_work
    return int(rng.integers(1, config.train.epochs)) if straggles else config.train.epochs


def _sample(nodes: Sequence[int], count: int | None, seed: int, number: int, purpose: str) -> list[int]:
    if count is None or count >= len(nodes):
        return list(nodes)
    rng = numpy_stream(seed, number, "server", purpose)
    return sorted(nodes[i] for i in rng.choice(len(nodes), count, replace=False))

"""Readings: the numbers that a published table takes from one run. A curve is the metric after each measured round."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

Curve = Sequence[tuple[int, float]]  # (round, value), by round


def last(curve: Curve) -> list[float]:
    """Return the value after the last round."""
    return [curve[-1][1]]


def best(curve: Curve) -> list[float]:
    """Return the largest value."""
    return [max(value for _, value in curve)]


def at_best(curve: Curve, chosen_by: Curve) -> list[float]:
    """Return the value in the round in which another metric is largest, the first of equal ones (LG-FedAvg's code).

    Raises KeyError with the round if the curve lacks it.
    """
    number, _ = max(chosen_by, key=lambda point: point[1])
    return [dict(curve)[number]]


def best_of_nodes(rounds: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the mean over nodes of each one's largest value; `rounds`: of each round the nodes' values."""
    found: dict[str, float] = {}
    for values in rounds:
        found |= {node: max(value, found.get(node, value)) for node, value in values.items()}
    return [sum(found.values()) / len(found)]


def best_rounds(curve: Curve, count: int) -> list[float]:
    """Return the `count` largest values, the largest first: a table pools them over runs (FedGen's code)."""
    return heapq.nlargest(count, (value for _, value in curve))


def last_rounds(curve: Curve, count: int) -> list[float]:
    """Return the mean of the last `count` values, for a published curve that goes up and down."""
    values = [value for _, value in curve[-count:]]
    return [sum(values) / len(values)]


def moving_average(curve: Curve, decay: float) -> list[float]:
    """Return the end of m <- decay m + (1 - decay) value, from the first value on (FedNTD's code)."""
    mean = curve[0][1]
    for _, value in curve[1:]:
        mean = decay * mean + (1 - decay) * value
    return [mean]


def running_pools(first: Sequence[float], second: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return for each node the accuracy pooled over all nodes up to it and over two rules, as FedProto's code does.

    Its counts are set to 0 before the loop over nodes and never in it; in each node the rule `first` is tested before
    `second`. `first`, `second`: accuracies of each node by each rule; `sizes`: shares of test samples.
    """
    found, right, total = [], 0.0, 0.0
    for one, other, size in zip(first, second, sizes, strict=True):
        right, total = right + size * (one + other), total + 2 * size
        found.append(right / total)
    return found


def crossing(curve: Curve, target: float) -> list[float]:
    """Return the round in which the largest value so far reaches `target`, interpolated between measured rounds.

    Empty if it never does. As McMahan et al. (2017) read their curves.
    """
    before = curve[0]
    if before[1] >= target:
        return [float(before[0])]
    for number, value in curve[1:]:
        if value >= target:
            share = (target - before[1]) / (value - before[1])
            return [before[0] + share * (number - before[0])]
        before = (number, max(before[1], value))
    return []

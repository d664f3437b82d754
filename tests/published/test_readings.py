"""Readings of a curve, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.published.readings import (
    at_best,
    best,
    best_of_nodes,
    best_rounds,
    crossing,
    last,
    last_rounds,
    moving_average,
    running_pools,
)

CURVE = [(0, 0.1), (1, 0.5), (2, 0.4), (4, 0.9), (5, 0.7)]


def test_the_last_and_the_best_rounds() -> None:
    assert last(CURVE) == [0.7]
    assert best(CURVE) == [0.9]
    assert best_rounds(CURVE, 2) == [0.9, 0.7]
    assert best_rounds(CURVE, 9) == [0.9, 0.7, 0.5, 0.4, 0.1]
    assert last_rounds(CURVE, 3) == [pytest.approx((0.4 + 0.9 + 0.7) / 3)]
    assert last_rounds(CURVE, 9) == [pytest.approx(sum(value for _, value in CURVE) / 5)]


def test_a_moving_average_starts_with_the_first_value() -> None:
    assert moving_average(CURVE[:3], 0.6) == pytest.approx([0.6 * (0.6 * 0.1 + 0.4 * 0.5) + 0.4 * 0.4])
    assert moving_average([(3, 0.25)], 0.6) == [0.25]


def test_a_crossing_is_interpolated_from_the_best_value_so_far() -> None:
    assert crossing(CURVE, 0.3) == pytest.approx([0.5])
    assert crossing(CURVE, 0.7) == pytest.approx([2 + 2 * (0.7 - 0.5) / (0.9 - 0.5)])  # 0.5 was the best, not 0.4
    assert crossing(CURVE, 0.1) == [0.0]
    assert crossing(CURVE, 0.5) == pytest.approx([1.0])
    assert crossing(CURVE, 0.95) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.01, 1))
def test_a_crossing_lies_between_the_rounds_around_it(values: list[float], target: float) -> None:
    curve = list(enumerate(values))
    found = crossing(curve, target)
    assert bool(found) == (max(values) >= target)
    if found:
        first = next(number for number, value in curve if value >= target)
        assert max(first - 1, 0) <= found[0] <= first


def test_running_pools_are_over_the_nodes_so_far_and_both_rules() -> None:
    """Nodes with 2 and 1 shares of test samples: after node 0 (0.5 + 1) / 2; then (2 (0.5 + 1) + (0 + 0.3)) / 6."""
    assert running_pools([0.5, 0.0], [1.0, 0.3], [2, 1]) == pytest.approx([0.75, 3.3 / 6])


def test_another_metric_in_the_best_round_is_that_of_the_first_of_equal_ones() -> None:
    assert at_best([(0, 0.2), (1, 0.3), (3, 0.8), (4, 0.9)], [(0, 0.1), (1, 0.5), (3, 0.5), (4, 0.4)]) == [0.3]
    with pytest.raises(KeyError, match="4"):
        at_best(CURVE[:3], CURVE)


def test_the_best_of_nodes_is_the_mean_of_each_ones_largest_value() -> None:
    """Node 0 is best in the first round, node 1 in the last; node 2 has been measured once."""
    rounds = [{"0": 0.9, "1": 0.2}, {"0": 0.5, "1": 0.3, "2": 0.6}, {"0": 0.8, "1": 0.6}]
    assert best_of_nodes(rounds) == [pytest.approx((0.9 + 0.6 + 0.6) / 3)]

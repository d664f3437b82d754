"""Client sampling: how many nodes take part and are measured, in which rounds, and by which draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fedkd.config import Config
from fedkd.core.sampling import sample_cohort, sample_measured
from fedkd.streams import numpy_stream

Make = Callable[..., Config]


def test_the_cohort_is_drawn_from_the_rounds_stream_and_sorted(tiny: Make) -> None:
    nodes = range(10, 50)
    for number in (1, 2):
        chosen = numpy_stream(5, number, "server", "cohort").choice(40, 3, replace=False)
        assert sample_cohort(nodes, tiny({"seed": 5, "cohort": 3}), number) == sorted(10 + int(i) for i in chosen)
    assert sample_cohort(nodes, tiny(), 1) == list(nodes)
    assert [len(sample_cohort(nodes, tiny({"cohort": size}), 1)) for size in (39, 40, 41)] == [39, 40, 40]


def test_measured_nodes_have_draws_of_their_own(tiny: Make) -> None:
    config = tiny({"cohort": 20, "evaluate.fraction": 0.5})
    chosen = numpy_stream(0, 1, "server", "evaluate").choice(40, 20, replace=False)
    assert sample_measured(range(40), config, 1) == sorted(chosen.tolist())
    assert sample_measured(range(40), config, 1) != sample_cohort(range(40), config, 1)


@pytest.mark.parametrize(
    ("nodes", "fraction", "count"),
    [(99, None, 99), (100, None, 100), (101, None, 100), (300, None, 100),
     (300, 1.0, 300), (300, 0.5, 150), (6, 0.25, 2), (5, 0.5, 2), (300, 0.001, 1), (3, 0.1, 1)],
)  # fmt: skip
def test_a_hundred_nodes_are_measured_or_a_fraction_but_at_least_one(
    tiny: Make, nodes: int, fraction: float | None, count: int
) -> None:
    config = tiny({} if fraction is None else {"evaluate.fraction": fraction})
    assert len(sample_measured(range(nodes), config, 1)) == count


def test_rounds_are_measured_every_so_often_and_the_last_one_always(tiny: Make) -> None:
    config = tiny({"rounds": 7, "evaluate.every": 3})
    assert [bool(sample_measured(range(4), config, number)) for number in range(8)] == [
        True, False, False, True, False, False, True, True,
    ]  # fmt: skip

"""Moments merge part by part into those of the whole, in whatever parts it is cut."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fedkd.data.moments import by_column, merged, moments, nothing, or_one, scaled_columns
from fedkd.data.spec import DataSpec

WAVE = 2 * np.sin(0.37 * np.arange(12) + 0.1)
WAVE[[2, 7]] = np.nan


def test_nodes_pool_their_values_and_not_their_means() -> None:
    parts = [moments(part[:, None], np.arange(len(part)), lambda x: x.T, 1) for part in np.split(WAVE, [5, 9])]
    found = merged(parts, 1)
    assert found.counts.tolist() == [10]
    assert found.mean == pytest.approx([0.49564502], abs=1e-8)
    assert found.deviation == pytest.approx([1.27605636], abs=1e-8)
    assert np.mean([part.mean for part in parts]) == pytest.approx(0.41247817, abs=1e-8)  # a mean of means


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_cut_changes_anything_beyond_rounding(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    count = data.draw(st.integers(1, 60))
    values = (data.draw(st.floats(-1e3, 1e3)) + rng.normal(size=(count, 3))) * 10.0 ** data.draw(st.integers(-9, 9))
    values[rng.random(values.shape) < data.draw(st.sampled_from([0.0, 0.3, 0.9]))] = np.nan
    values[:, 2] = 0.1  # all equal
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=8)))
    parts = [moments(part, np.arange(len(part)), lambda x: x.T, 3) for part in np.split(rng.permutation(values), cuts)]
    found, whole = merged(parts, 3), moments(values, np.arange(count), lambda x: x.T, 3)
    assert found.counts.tolist() == whole.counts.tolist() == (~np.isnan(values)).sum(0).tolist()
    assert found.mean == pytest.approx(whole.mean, rel=1e-9)
    assert found.deviation == pytest.approx(whole.deviation, rel=1e-9)
    assert found.deviation[2] == 1
    for column in np.flatnonzero(whole.counts > 1)[:-1]:
        assert whole.deviation[column] == pytest.approx(np.nanstd(values[:, column]), rel=1e-9)


def test_no_values_are_nothing_and_one_value_has_no_deviation() -> None:
    assert merged([], 2).deviation.tolist() == [1, 1]
    one = moments(np.array([[3.0, np.nan]]), np.arange(1), lambda x: x.T, 2)
    assert [part.tolist() for part in nothing(2).merged(one).merged(nothing(2))] == [[1, 0], [3, 0], [0, 0]]


def test_a_deviation_that_is_only_rounding_is_none() -> None:
    assert or_one(np.array([0.0, 1e-17, 1e-17, 3.0]), np.array([5.0, 0.1, 1e-20, -4.0])).tolist() == [1, 1, 1e-17, 3]


def test_series_count_their_valid_steps() -> None:
    series = (2 * np.sin(0.37 * np.arange(30) + 0.2)).reshape(2, 3, 5)
    series[1, :, 3:] = np.nan
    found = moments(series, np.arange(2), by_column(DataSpec(kind="series", shape=(3, 5))), 3)
    assert found.counts.tolist() == [8, 8, 8]
    assert found.mean == pytest.approx([0.76017251, 1.08515317, -1.35828777], abs=1e-8)
    assert found.deviation == pytest.approx([1.01873465, 0.95820483, 0.61402109], abs=1e-8)


def test_an_array_of_single_numbers_has_one_mean() -> None:
    spec = DataSpec(kind="array", shape=())
    assert scaled_columns(spec) == 1
    assert moments(np.arange(4.0), np.arange(4), by_column(spec), 1).mean.tolist() == [1.5]

"""Groups of samples by their labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedkd.data.strata import strata_of


def test_classes_are_their_own_groups() -> None:
    labels = np.array([2, 0, 1])
    assert strata_of(labels, "classification", ("a", "b", "c")).of(labels) is labels


def test_a_sample_with_several_labels_is_in_the_group_of_its_rarest() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 0, 1]], np.float64)
    strata = strata_of(labels, "multilabel", ("often", "once", "thrice"))
    assert strata.of(labels).tolist() == [1, 0, 2, 2, 3, 2]
    assert strata.names[3] == "none"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.lists(st.floats(-1e7, 1e7), max_size=20))
def test_bins_of_a_target_rise_and_have_names(values: list[float], others: list[float]) -> None:
    labels = np.array(values)[:, None]
    strata = strata_of(labels, "regression", ("y",))
    bins = strata.of(labels)
    assert 0 <= bins.min() <= bins.max() < len(strata.names) <= 10
    order = np.argsort(labels[:, 0], kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    if others:
        assert set(strata.of(np.array(others)[:, None])) <= set(range(len(strata.names)))


def test_bins_of_many_values_are_equally_full() -> None:
    labels = np.random.default_rng(0).normal(size=(1000, 1))
    assert np.bincount(strata_of(labels, "regression", ("y",)).of(labels)).tolist() == [100] * 10

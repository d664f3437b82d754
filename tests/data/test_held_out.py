"""Training samples in place of tests: by class and node, never the set's own tests."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd import Dataset, InputError, Samples
from fedkd.data.held_out import tests_from_training as held_out


def numbered(count: int, first: int) -> Samples:
    inputs = np.arange(first, first + count, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    return Samples(inputs, np.arange(count, dtype=np.int64) % 2)


def test_a_share_of_each_class_and_node_is_held_out_and_the_tests_are_gone() -> None:
    nodes = np.repeat([0, 1], 20)
    dataset = Dataset(numbered(40, 0), numbered(9, 100), ("a", "b"), nodes=(nodes, np.zeros(9, np.int64)))
    found = held_out(dataset, 0.2, "mine", by_time=False)
    train, test = ({int(image[0, 0, 0]) for image in part.inputs} for part in (found.train, found.test))
    assert train | test == set(range(40))
    assert not train & test
    assert found.nodes is not None
    for node in (0, 1):
        assert np.bincount(found.test.labels[found.nodes[1] == node]).tolist() == [2, 2]
        assert np.bincount(found.train.labels[found.nodes[0] == node]).tolist() == [8, 8]
    again = held_out(dataset, 0.2, "mine", by_time=False)
    assert np.array_equal(again.test.inputs, found.test.inputs)


def test_samples_for_validation_stay() -> None:
    named = np.arange(40) < 10
    dataset = Dataset(numbered(40, 0), numbered(9, 100), ("a", "b"), validation=named)
    found = held_out(dataset, 0.5, "mine", by_time=False)
    assert found.validation is not None
    kept = {int(image[0, 0, 0]) for image in found.train.inputs[found.validation]}
    assert kept == set(range(10))
    assert min(int(image[0, 0, 0]) for image in found.test.inputs) >= 10


def test_what_cannot_be_held_out_is_refused() -> None:
    dataset = Dataset(numbered(2, 0), numbered(9, 100), ("a", "b"))
    with pytest.raises(InputError, match="mine has too few training samples"):
        held_out(dataset, 0.2, "mine", by_time=False)
    with pytest.raises(InputError, match="drawn samples are not later ones"):
        held_out(dataset, 0.5, "mine", by_time=True)

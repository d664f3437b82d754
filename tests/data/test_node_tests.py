"""Test images follow each node's own labels, or are dealt class by class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import Make

from fedkd.config import Config, parse_config, to_table
from fedkd.data.federation import federate
from fedkd.data.node_tests import dealt_tests
from fedkd.data.splits import Pool
from fedkd.errors import InputError


def test_test_images_follow_each_nodes_own_labels(tiny: Make, mnist_root: Path) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 20, "alpha": 0.3, "size": 400}
    changes = {"data.name": "mnist", "data.root": str(mnist_root), "data.partition": partition, "data.node_test": 200}
    data = federate(tiny(changes).data, 0)
    train = data.label_counts()
    assert (train.sum(1) == 400).all()
    for node in range(20):
        part = data.test_parts[node]
        assert len(np.unique(part)) == len(part) == 200
        test = np.bincount(data.test_of(node).labels, minlength=10)
        assert np.abs(test - train[node] / 2).max() < 1


def test_where_the_test_set_is_short_the_draw_shrinks_and_keeps_its_proportions(tiny: Make) -> None:
    partition = {"scheme": "classes_per_client", "clients": 10, "classes": 1}
    data = federate(tiny({"data.partition": partition, "data.node_test": 200}).data, 0)
    for node in range(10):
        labels = data.test_of(node).labels
        assert set(labels) == set(data.train_of(node).labels)
        assert len(labels) == np.bincount(data.test.labels)[labels[0]]


def test_test_images_follow_the_prior_of_a_group_and_not_the_few_images_of_a_node(tiny: Callable[..., Config]) -> None:
    partition = {"scheme": "groups", "clients": 4, "groups": 2, "alpha": 1.0, "size": 10}
    data = federate(tiny({"data.partition": partition, "data.node_test": 60}).data, 0)
    for node in range(4):
        shares = np.bincount(data.test_of(node).labels, minlength=10) / len(data.test_of(node).labels)
        assert np.abs(shares - data.priors[node]).sum() < 0.25
    held = data.label_counts() > 0
    tested = np.stack([np.bincount(data.test_of(n).labels, minlength=10) > 0 for n in range(4)])
    assert (tested & ~held).any()  # classes that a node has no training image of are tested too


def test_without_a_drawn_prior_it_is_what_the_node_holds(tiny: Callable[..., Config]) -> None:
    data = federate(tiny().data, 0)
    np.testing.assert_allclose(data.priors, data.label_counts() / data.label_counts().sum(1, keepdims=True))


def of_labels(labels: list[int]) -> Pool:
    return Pool(np.array(labels), np.zeros(len(labels), np.int64), ("a", "b", "c"), ("set",))


TRAINING = of_labels([0, 1, 2, 0, 1, 2, 0])
TESTS = of_labels([2, 1, 0, 0, 1, 2, 0, 1, 0, 1, 0, 1, 1])  # a at 2 3 6 8 10, b at 1 4 7 9 11 12, c at 0 5
HANDS = [np.array([0, 3, 1]), np.array([4]), np.array([6])]  # node 0 owns a and b, 1 owns b, 2 owns a


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, [[1, 2, 4], [7, 9], [3]]),  # 5 // 3 of a and 6 // 3 of b: node 2 takes a's second one
        (1, [[1, 2], [4], [6]]),  # node 2 has a's third one
    ],
)
def test_tests_are_dealt_in_the_order_of_the_test_set(size: int | None, expected: list[list[int]]) -> None:
    assert [found.tolist() for found in dealt_tests(HANDS, TRAINING, TESTS, size)] == expected


def test_a_class_with_too_few_test_images_is_refused() -> None:
    message = (
        r"data.node_test = 2: 3 nodes need 6 test images of each class, and 'a' has 5; lower .* or data.node_test."
    )
    with pytest.raises(InputError, match=message):
        dealt_tests(HANDS, TRAINING, TESTS, 2)
    message = (
        r"data.node_test_by = 'owned': 3 nodes need 3 test images of each class, and 'c' has 2; lower the number of"
    )
    with pytest.raises(InputError, match=message):
        dealt_tests([*HANDS[:2], np.array([2])], TRAINING, TESTS, None)


@pytest.mark.parametrize("changes", [{}, {"data.held_out": 0.3}, {"data.node_train": 0.5}])
@pytest.mark.parametrize(("by", "size"), [("owned", None), ("cut", 3)])
def test_a_federations_tests_are_of_the_classes_that_a_node_trains_on(
    tiny: Make, by: str, size: int | None, changes: dict
) -> None:
    partition = {"scheme": "dirichlet", "clients": 6, "alpha": 0.3}
    tests = {"data.node_test_by": by, "data.node_test": size or 200}
    config = tiny({"data.partition": partition, **tests, **changes})
    assert parse_config(to_table(config)) == config  # a resumed run reads a file with all values
    data = federate(config.data, 0)
    assert len(np.unique(data.test_parts.values)) == len(data.test_parts.values)
    available = np.bincount(data.test.labels)
    for node in range(6):
        counts = np.bincount(data.test_of(node).labels, minlength=10)
        wanted = available // 6 if size is None else np.full(10, size)
        assert counts.tolist() == np.where(data.label_counts()[node] > 0, wanted, 0).tolist()


WAYS = {"scheme": "ways", "clients": 5, "ways": 3, "shots": 9, "most_shots": 10, "test_shots": 4}


@pytest.mark.parametrize("changes", [{}, {"data.held_out": 0.3}])
def test_ways_deals_test_images_too(tiny: Make, changes: dict) -> None:
    """They are those of node_test_by = "cut" with as many images of each class."""
    ways = {"data.partition": WAYS, "data.node_test": 200, **changes}
    data = federate(tiny(ways).data, 0)
    assert len(np.unique(data.test_parts.values)) == len(data.test_parts.values)
    members = [np.flatnonzero(data.test.labels == label) for label in range(10)]
    for node in range(5):
        own = np.flatnonzero(data.label_counts()[node])
        assert set(data.label_counts()[node][own]) <= {8, 9}
        wanted = np.sort(np.concatenate([members[label][4 * node : 4 * node + 4] for label in own]))
        assert np.array_equal(data.test_parts[node], wanted)
    with pytest.raises(InputError, match=r"data.partition.test_shots = 9: 5 nodes need 45 test images of each class"):
        federate(tiny({**ways, "data.partition": {**WAYS, "test_shots": 9}}).data, 0)


SITES = {"sites": {"count": 2, "classes": ["a", "b"], "shape": [1, 8, 8]}, "name": None, "partition": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_test_by": "equal"}, "node_test_by = 'equal': input should be 'labels', 'owned' or 'cut'"),
        ({"node_test_by": "owned", "node_test": 40}, "node_test_by = 'owned' gives .*; remove node_test, or set 'cut'"),
        ({"node_test_by": "cut", "task": "regression"}, "node_test_by = 'cut' deals .* task is 'regression', so rem"),
        ({"node_test_by": "cut", "name": None, "names": ["digits", "mnist"]}, "'cut' is for one set; names has 2"),
        ({"node_test_by": "owned", "node_test": 200, **SITES}, "node_test_by = 'owned' is for a simulation"),
        (
            {"node_test_by": "cut", "partition": {"scheme": "drawn", "clients": 3, "alpha": 1.0, "size": 9}},
            "data.node_test_by = 'cut': with data.partition.scheme = 'drawn' nodes share images",
        ),
        (
            {"node_test_by": "cut", "partition": WAYS},
            "data.node_test_by = 'cut': with data.partition.scheme = 'ways' nodes get test_shots test images of each",
        ),
        ({"node_test": 40, "partition": WAYS}, "data.node_test = 40: with .* 'ways' .*; remove data.node_test."),
    ],
)
def test_tests_that_cannot_be_dealt_are_refused(tiny: Make, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        federate(tiny({f"data.{key}": value for key, value in changes.items()}).data, 0)


def test_nodes_with_tests_of_their_own_are_dealt_none(tiny: Make, tmp_path: Path) -> None:
    images, labels = np.zeros((12, 4, 4), np.uint8), np.arange(12) % 2
    parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "set.npz", **parts, node_train=np.arange(12) // 6, node_test=np.arange(12) // 6)
    changes = {"data.name": f"npz:{tmp_path / 'set.npz'}", "data.partition": {"scheme": "natural"}}
    assert federate(tiny(changes).data, 0).test_parts.lengths().tolist() == [6, 6]
    with pytest.raises(InputError, match=r"scheme = 'natural' nodes have their own test samples; remove data.node_te"):
        federate(tiny({**changes, "data.node_test_by": "cut"}).data, 0)

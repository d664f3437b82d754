"""Test images follow each node's own labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers import Make

from fedkd.config import Config
from fedkd.data.federation import federate


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

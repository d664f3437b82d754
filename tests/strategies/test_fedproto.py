"""FedProto: prototypes, the pull to them, and prediction by the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import Make, lines, server_state
from helpers.formulas import normal

from fedkd import Environment
from fedkd.methods.class_means import mean_over_nodes
from fedkd.runs.run import run
from fedkd.strategies.fedproto import nearest_prototype, prototype_distance


def test_the_nearest_prototype_is_one_that_exists() -> None:
    prototypes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    features = torch.tensor([[0.1, 0.1], [0.8, 0.0], [0.0, 3.0]])
    assert nearest_prototype(features, prototypes, torch.tensor([True, True, True])).tolist() == [0, 1, 2]
    assert nearest_prototype(features, prototypes, torch.tensor([False, True, False])).tolist() == [1, 1, 1]


def test_the_pull_is_a_mean_over_images_and_dimensions_and_skips_what_has_no_prototype() -> None:
    features, prototypes, labels = normal(4, 3), normal(2, 3, seed=1), torch.tensor([0, 1, 1, 0])
    right = sum((features[i, d].item() - prototypes[0, d].item()) ** 2 for i in (0, 3) for d in range(3)) / 12
    value = prototype_distance(features, labels, prototypes, torch.tensor([1, 0]))
    assert value.item() == pytest.approx(right, rel=1e-12)


def test_prototypes_are_weighted_by_images_or_not() -> None:
    means = {0: torch.tensor([[1.0]]), 1: torch.tensor([[5.0]])}
    counts = {0: torch.tensor([3]), 1: torch.tensor([1])}
    assert mean_over_nodes(means, counts)[0].item() == 2.0
    assert mean_over_nodes(means, {n: c > 0 for n, c in counts.items()})[0].item() == 3.0


def test_fedproto_has_an_accuracy_before_the_first_prototypes(tiny: Make, tmp_path: Path) -> None:
    """A public framework reports 0 until the first aggregation."""
    run(tiny({"strategy": {"name": "fedproto"}, "rounds": 2, "train.epochs": 5}), tmp_path / "run")
    metrics = [line["metrics"] for line in lines(tmp_path / "run")]
    assert metrics[0]["personal/accuracy"] == metrics[0]["personal_classifier/accuracy"] > 0
    assert metrics[1]["personal/accuracy"] != metrics[1]["personal_classifier/accuracy"]
    assert metrics[2]["personal/accuracy"] > metrics[0]["personal/accuracy"]


def test_the_pull_to_the_prototypes_draws_features_together(tiny: Make, tmp_path: Path) -> None:
    """The first round has no prototypes, so the weight changes nothing yet; from the second on it does."""
    for weight in (0.0, 5.0):
        strategy = {"name": "fedproto", "prototype_weight": weight}
        run(tiny({"strategy": strategy, "rounds": 2}), tmp_path / str(weight))
    without, pulled = lines(tmp_path / "0.0"), lines(tmp_path / "5.0")
    assert without[1] == pulled[1]
    assert without[2] != pulled[2]


def test_a_class_that_no_node_of_a_cohort_has_keeps_its_prototype(tiny: Make, tmp_path: Path) -> None:
    partition = {"scheme": "classes_per_client", "clients": 6, "classes": 2}
    run(tiny({"strategy": {"name": "fedproto"}, "data.partition": partition, "cohort": 1, "rounds": 4}), tmp_path / "r")
    state = server_state(tmp_path / "r")
    seen = {node for line in lines(tmp_path / "r")[1:] for node in line["cohort"]}
    assert len(seen) > 1
    held = Environment(tiny({"data.partition": partition})).data.label_counts()[sorted(seen)].sum(0) > 0
    assert state["present"].bool().tolist() == held.tolist()
    assert (state["prototypes"].abs().sum(1) > 0).tolist() == held.tolist()

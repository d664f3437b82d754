"""FedProto: prototypes, the pull to them, and prediction by the nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from helpers import Make, lines, server_state
from helpers.formulas import normal
from torch.nn import functional as F

from fedkd import Environment, Payload, Samples
from fedkd.learning.batches import batches
from fedkd.methods.class_means import mean_over_nodes
from fedkd.runs.run import run
from fedkd.strategies.fedproto import FedProto, FedProtoClient, nearest_prototype, prototype_distance
from fedkd.streams import torch_stream


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


def client_of(environment: Environment, action: str, **options: Any) -> FedProtoClient:
    return FedProtoClient(environment, [FedProto(**options)], 2, RecordDict(), 1, action, True)


@pytest.mark.parametrize(("train", "skipped"), [({"epochs": 2}, 3), ({"steps": 4}, 1), ({"steps": 2}, 0)])
def test_prototypes_of_training_are_means_of_what_passes_by_in_the_last_epoch(
    tiny: Make, train: dict[str, int], skipped: int
) -> None:
    """24 images are three batches; the steps are written out."""
    environment = Environment(tiny({f"train.{key}": value for key, value in train.items()}))
    request = Payload(prototypes={"global": normal(10, 16)}, statistics={"present": torch.arange(10) % 2})
    client = client_of(environment, "fit", means_over="training")
    assert len(client.labels) == 24
    model = client.load_model(environment.initial_weights(0, 2)).train()
    order, seen = torch_stream(0, 1, 2, "fit/local-training"), []
    left = train.get("steps", 6)
    while left > 0:
        for images, labels in batches(client.data, client.labels, 8, environment.preprocess, order):
            features = model.features(images)
            seen.append((features.detach(), labels))
            pull = (features - request.prototypes["global"][labels]).square().mean(1) * (labels % 2)
            (F.cross_entropy(model.classifier(features), labels) + pull.mean()).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            left -= 1
            if not left:
                break
    passed = torch.cat([features for features, _ in seen[skipped:]])
    labels = torch.cat([labels for _, labels in seen[skipped:]])
    reply = client_of(environment, "fit", means_over="training").fit(request)
    assert reply.statistics["counts"].tolist() == torch.bincount(labels, minlength=10).tolist()
    for label in labels.unique():
        torch.testing.assert_close(reply.prototypes["means"][label], passed[labels == label].mean(0))


@pytest.mark.parametrize(
    ("inference", "present", "share"),
    [
        ("all", [1, 1, 1, 1], 0.0),  # the nearest is class 2, which the node lacks
        ("own_classes", [1, 1, 1, 1], 0.75),  # the nearest of its own is class 1
        ("own_classes", [1, 0, 1, 1], 0.25),
        ("own_classes", [0, 0, 1, 1], 0.0),  # no prototype of its own classes
    ],
)
def test_a_node_may_predict_only_its_own_classes(tiny: Make, inference: str, present: list[int], share: float) -> None:
    client = client_of(Environment(tiny()), "evaluate", inference=inference)
    client.__dict__["data"] = Samples(np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 1]))
    client.__dict__["test_data"] = Samples(np.zeros((4, 1, 8, 8), np.uint8), np.array([1, 1, 0, 1]))
    client.__dict__["validation_data"] = None
    client.features = lambda data: torch.zeros(len(data.labels), 1)  # type: ignore[method-assign]
    prototypes = torch.tensor([[3.0], [2.0], [1.0], [9.0]])
    request = Payload(prototypes={"global": prototypes}, statistics={"present": torch.tensor(present)})
    client.evaluate(request)
    assert client.metrics["personal/accuracy"] == share
    twos = client.environment.data.test.labels == 2
    assert client.metrics["personal_global_test/accuracy"] == twos.mean()  # among all classes


def test_fedproto_learns_as_in_the_authors_code(tiny: Make, tmp_path: Path) -> None:
    options = {"means_over": "training", "inference": "own_classes", "weighting": "uniform"}
    config = tiny({"strategy": {"name": "fedproto", **options}, "rounds": 3, "train.epochs": 4})
    assert run(config, tmp_path / "run")["failures"] == 0
    first, *_, last = (line["metrics"] for line in lines(tmp_path / "run"))
    assert last["personal/accuracy"] > first["personal/accuracy"] + 0.4
    assert last["personal_classifier/accuracy"] > first["personal_classifier/accuracy"] + 0.4

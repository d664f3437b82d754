"""`fedkd list` prints the names."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedkd.cli import app

RUNNER = CliRunner()


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("strategies", {"fedavg", "fedprox", "fedmd", "local", "central"}),
        ("models", {"mlp", "lenet5", "cnn", "resnet8", "resnet20", "torchvision:<name>"}),
        ("datasets", {"digits", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "svhn", "usps"}),
        ("partitions", {"iid", "dirichlet", "client_dirichlet", "shards", "classes_per_client", "quantity", "domains"}),
        ("engines", {"inline", "ray"}),
    ],
)
def test_list_prints_the_names(what: str, names: set[str]) -> None:
    assert names <= set(RUNNER.invoke(app, ["list", what]).stdout.splitlines())

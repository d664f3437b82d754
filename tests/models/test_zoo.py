"""Architectures: the published sizes, and features under a linear classifier."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedkd.data.spec import Form
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


@pytest.mark.parametrize(
    ("name", "table", "shape", "parameters"),
    [
        ("lenet5", {}, (1, 28, 28), 61706),
        ("mlp", {}, (1, 28, 28), 199210),  # McMahan et al.'s 2NN
        ("cnn", {}, (1, 28, 28), 1663370),  # McMahan et al.'s CNN
        ("mlp", {"hidden": [3000, 3000]}, (1, 28, 28), 11388010),
        ("resnet20", {}, (3, 32, 32), 269722),  # He et al.: 0.27 million
        ("resnet8", {}, (3, 32, 32), 75290),
        ("resnet18_cifar", {}, (3, 32, 32), 11_168_832 + 5130),  # and FedX's without the classifier
        ("resnet18_cifar", {"norm": "instance"}, (3, 28, 28), 11_173_962),  # FedLGD's
        ("resnet18_cifar", {"norm": "group"}, (3, 32, 32), 11_173_962),
        ("convnet", {}, (3, 32, 32), 320010),  # Zhao et al., 2021
        ("convnet", {}, (3, 28, 28), 311_050),  # FedLGD's
        ("convnet", {"first_padding": 3}, (1, 28, 28), 317_706),  # of VICO-UoE/DatasetCondensation for MNIST
        ("convnet", {"first_padding": 1}, (3, 28, 28), 311_050),
        ("convnet", {}, (3, 96, 96), 483_850),  # with two classes its 336,386
    ],
)
def test_sizes_are_the_published_ones(name: str, table: dict, shape: tuple, parameters: int) -> None:
    model = build(name, table, Form("image", shape), 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 16, 16), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("mlp", {}),
        ("lenet5", {}),
        ("cnn", {}),
        ("cnn", {"projection": 9}),
        ("convnet", {"channels": [8, 8], "norm": "batch", "pooling": "max"}),
        ("convnet", {"channels": [8, 8], "projection": 6}),
        ("resnet8", {}),
        ("resnet18_cifar", {}),
        ("resnet18_cifar", {"norm": "instance"}),
        ("resnet20", {"norm": "group"}),
        ("torchvision:resnet18", {}),
    ],
)
def test_logits_are_the_classifier_on_the_features(name: str, table: dict, shape: tuple) -> None:
    if name == "lenet5" and shape[1] == 8:
        pytest.skip("LeNet-5 needs 12 pixels at least: the refusal has a test of its own")
    model = build(name, table, Form("image", shape), 7).eval()
    images = torch.randn(3, *shape)
    features = model.features(images)
    assert features.dim() == 2
    assert isinstance(model.classifier, nn.Linear)
    assert torch.equal(model.classifier(features), model(images))
    assert model(images).shape == (3, 7)


def test_group_norm_has_no_running_statistics() -> None:
    assert not [
        name
        for name in build("resnet8", {"norm": "group"}, Form("image", (3, 32, 32)), 10).state_dict()
        if "running" in name
    ]
    assert [name for name in build("resnet8", {}, Form("image", (3, 32, 32)), 10).state_dict() if "running" in name]

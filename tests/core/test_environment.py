"""An environment has models and data on one device, and makes models from streams of their own."""

from __future__ import annotations

import torch
from helpers import Make

from fedkd import Environment
from fedkd.core.setup import make_setup


def test_an_environment_moves_to_another_device_with_models_and_batches(tiny: Make) -> None:
    setup = make_setup(tiny())
    setup.check()
    environment = setup.environment
    assert environment.model(0).classifier.weight.device.type == "cpu"  # type: ignore[union-attr]
    assert environment.preprocess(environment.data.test.images[:2]).device.type == "cpu"
    environment.use_device("meta")
    assert environment.model(0).classifier.weight.device.type == "meta"  # type: ignore[union-attr]
    assert environment.preprocess(environment.data.test.images[:2]).device.type == "meta"


def test_nodes_start_from_models_of_their_own(tiny: Make) -> None:
    environment = Environment(tiny())
    a, b = environment.initial_weights(0, 1), environment.initial_weights(0, 2)
    assert not torch.equal(a["classifier.weight"], b["classifier.weight"])
    assert torch.equal(a["classifier.weight"], environment.initial_weights(0, 1)["classifier.weight"])

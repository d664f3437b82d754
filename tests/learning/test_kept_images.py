"""A GPU keeps the images of whole sets. Here the CPU does: the same bytes as from the clients' own arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Make

from fedkd import Environment
from fedkd.config import Sgd
from fedkd.data.federated_data import Ragged
from fedkd.data.samples import Samples
from fedkd.learning.batches import Preprocess, batches
from fedkd.learning.stacked_training import train_stacked
from fedkd.learning.training import LocalTraining

SGD = Sgd(name="sgd", lr=0.05)


class Keeps(Preprocess):
    """Keeps whole sets on the CPU, as a GPU does."""

    def room(self) -> int:
        return 2**20


@pytest.fixture
def environment(tiny: Make) -> Environment:
    return Environment(tiny({"data.augment": "crop_flip", "data.public": {"size": 30}}))


def _preprocess(environment: Environment, kind: type[Preprocess]) -> Preprocess:
    assert environment.data.public is not None
    wholes = [environment.data.train.inputs, environment.data.public.inputs]
    return kind(environment.data.codec, "crop_flip", torch.device("cpu"), wholes)


def _training(environment: Environment, data: Samples, preprocess: Preprocess, node: int) -> LocalTraining:
    order, labels = torch.Generator().manual_seed(node), torch.from_numpy(data.labels)
    return LocalTraining(environment.model(0), data, labels, 2, 8, SGD, preprocess, order)


def test_batches_have_the_same_bytes(environment: Environment) -> None:
    """Also of arrays that cannot be written, as Ray's workers have."""
    assert environment.data.public is not None
    assert isinstance(environment.data.train_parts, Ragged)
    for array in (environment.data.train.inputs, environment.data.public.inputs, environment.data.train_parts.values):
        array.flags.writeable = False
    for data in (environment.data.train_of(2), environment.data.train_of(2).take(np.arange(24) % 3 > 0),
                 environment.data.public):  # fmt: skip
        found = []
        for kind in (Preprocess, Keeps):
            training = _training(environment, data, _preprocess(environment, kind), 0)
            assert (training.preprocess.kept(data) is not None) == (kind is Keeps)
            found.append([x for x, _ in batches(data, training.targets, 8, training.preprocess, training.order)])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_training_has_the_same_bytes(environment: Environment, shared: bool) -> None:
    """Also of clients whose images are in two sets: they are joined."""
    assert environment.data.public is not None
    data = [environment.data.train_of(1), environment.data.train_of(4) if shared else environment.data.public]
    start = {n: t.clone() for n, t in environment.model(0).state_dict().items()}
    found = []
    for kind in (Preprocess, Keeps):
        preprocess = _preprocess(environment, kind)
        trainings = [_training(environment, one, preprocess, node) for node, one in enumerate(data)]
        if kind is Keeps and shared:  # the clients' own arrays are not read
            trainings = [replace(t, data=t.data._replace(inputs=np.zeros_like(t.data.inputs))) for t in trainings]
        found.append(train_stacked(trainings, [start, start], "folded"))
    for one, other in zip(*found, strict=True):
        assert one.loss == other.loss
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())


def test_what_does_not_fit_and_what_is_another_image_is_not_kept(environment: Environment) -> None:
    keeps = _preprocess(environment, Keeps)
    own = environment.data.train_of(0)
    assert keeps.kept(Samples(own.inputs, own.labels)) is None
    assert keeps.kept(own._replace(encoded=True)) is None
    assert keeps.kept_bytes() == environment.data.train.inputs.nbytes + 30 * 64

    class Small(Keeps):
        def room(self) -> int:
            return keeps.kept_bytes() - 1

    small = _preprocess(environment, Small)
    assert small.kept_bytes() == 0
    assert small.kept(own) is None
    assert environment.preprocess.kept_bytes() == 0  # of a CPU

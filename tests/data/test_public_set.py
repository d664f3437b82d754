"""The public set and the validation images: balanced, set apart, perhaps of another set with classes of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make

from fedkd import Environment
from fedkd.config import Config
from fedkd.data.federation import federate
from fedkd.errors import InputError
from fedkd.learning.evaluation import predict
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run


def test_public_images_are_balanced_and_no_nodes(tiny: Make) -> None:
    config = tiny({"data.public": {"size": 105}}).data
    data = federate(config, 0)
    assert data.public is not None
    assert len(data.public.labels) == 105
    assert set(np.bincount(data.public.labels)) == {10, 11}
    assert len(data.train.labels) == 1442 - 105
    public = {image.tobytes() for image in data.public.inputs}
    own = {image.tobytes() for image in data.train.inputs}
    assert not public & own
    unbalanced = federate(tiny({"data.public": {"size": 105, "balanced": False}}).data, 0).public
    assert unbalanced is not None
    assert len(set(np.bincount(unbalanced.labels))) > 2


def test_the_public_set_may_be_another_set(tiny: Make, mnist_root: Path) -> None:
    changes = {"data.root": str(mnist_root), "data.size": 16, "data.public": {"size": 50, "name": "usps"}}
    data = federate(tiny(changes).data, 0)
    assert data.public is not None
    assert data.public.inputs.shape == (50, 1, 16, 16)
    assert len(data.train.labels) == 1442
    with pytest.raises(InputError, match=r"data.public.name = 'usps': its images are \(1, 16, 16\)"):
        federate(tiny({**changes, "data.size": None}).data, 0)


def test_labels_of_another_set_may_be_classes_of_their_own(tiny: Make, tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = np.repeat(labels[:, None, None] * 60, 8, 1).repeat(8, 2).astype(np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "shades.npz", classes=np.array(list("wxyz")), **arrays)
    public = {"size": 20, "name": f"npz:{tmp_path / 'shades.npz'}", "labelled": True}
    with pytest.raises(InputError, match="has the classes w, x, y, z, which the nodes lack .*; set own_classes = true"):
        federate(tiny({"data.public": public}).data, 0)
    config = tiny({"data.public": {**public, "own_classes": True}})
    data = federate(config.data, 0)
    assert data.public is not None
    assert data.priors is not None
    assert np.bincount(data.public.labels).tolist() == [0] * 10 + [5] * 4
    assert (data.public.inputs[:, 0, 0, 0] == (data.public.labels - 10) * 60).all()
    assert data.classes[10:] == ("shades.npz:w", "shades.npz:x", "shades.npz:y", "shades.npz:z")
    assert data.priors.shape == (6, 14)
    strategy = {"name": "fedmd", "public_epochs": 30, "private_epochs": 1}
    environment = Environment(config.model_copy(update={"strategy": tiny({"strategy": strategy}).strategy}))
    run(environment.config, tmp_path / "run")
    state = dict(load_nodes(latest(tmp_path / "run" / "checkpoints")[1]))[0]
    model = environment.model(0)
    model.load_state_dict(tensors_of(state["model"]))  # type: ignore[arg-type]
    predicted = predict(model, data.public, environment.preprocess).argmax(1)
    assert (predicted == torch.from_numpy(data.public.labels)).float().mean() > 0.9


@pytest.mark.parametrize("wrong", [{"labelled": True}, {"name": "digits"}])
def test_only_another_labelled_set_has_classes_of_its_own(tiny: Make, wrong: dict) -> None:
    with pytest.raises(InputError, match="own_classes = true: only another labelled set has other classes"):
        tiny({"data.public": {"size": 20, "own_classes": True, **wrong}})


def test_the_servers_validation_images_are_nobody_elses(tiny: Callable[..., Config]) -> None:
    changes = {"data.public": {"size": 100}, "data.validation": {"size": 50}, "data.partition.scheme": "dirichlet"}
    config = tiny({**changes, "data.partition.size": None})
    data = federate(config.data, 0)
    assert data.validation is not None
    assert data.public is not None
    assert np.bincount(data.validation.labels).tolist() == [5] * 10
    assert len(data.train.labels) == len(federate(tiny().data, 0).train.labels) - 150
    keys = [{image.tobytes() for image in part.inputs} for part in (data.validation, data.public, data.train)]
    assert not (keys[0] & keys[1])
    assert not (keys[0] & keys[2])

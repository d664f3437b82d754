"""Named sets in the form that a config asks for: a part of each class, a normalisation of one's own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedkd import Environment
from fedkd.config import Config
from fedkd.errors import InputError


def test_only_the_first_images_of_each_class_where_asked(tiny: Callable[..., Config]) -> None:
    config = tiny(
        {"data.train_per_class": 7, "data.test_per_class": 3, "data.partition": {"scheme": "iid", "clients": 2}}
    )
    data, whole = Environment(config).data, Environment(tiny()).data
    assert np.bincount(data.train.labels).tolist() == [7] * 10
    assert np.bincount(data.test.labels).tolist() == [3] * 10
    first = [np.flatnonzero(whole.train.labels == label)[:7] for label in range(10)]
    assert np.array_equal(data.train.inputs, whole.train.inputs[np.sort(np.concatenate(first))])


def test_the_normalisation_can_be_given_and_is_undone_for_pictures(tiny: Callable[..., Config]) -> None:
    environment = Environment(tiny({"data.mean": [0.25], "data.deviation": [0.5]}))
    images = environment.data.train.inputs[:4]
    normalised = environment.preprocess(images)
    torch.testing.assert_close(normalised, (torch.from_numpy(images).float() / 255 - 0.25) / 0.5)
    assert np.array_equal(environment.preprocess.pixels(normalised), images)
    assert environment.preprocess.pixels(torch.full((1, 1, 2, 2), 99.0)).max() == 255
    with pytest.raises(InputError, match="data.mean = .*1 channels"):
        Environment(tiny({"data.mean": [0.5, 0.5, 0.5]}))

"""The data of a real site: its classes among those of the federation, and the same normalisation everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from helpers.federations import CLASSES, sites_config

from fedkd.data.federation import federate
from fedkd.data.site_data import site_data


def test_a_site_may_lack_a_class_but_not_have_another(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1] * 3)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "two.npz", classes=np.array(["7", "3"]), **arrays)
    config = sites_config({})
    data = site_data(config.data, f"npz:{tmp_path / 'two.npz'}", 0)
    assert data.classes == tuple(CLASSES)
    assert data.train_of(3).labels.tolist() == [7, 3] * 3
    assert data.test_of(0).labels.tolist() == [7, 3] * 3


def test_all_sites_and_the_server_normalise_alike() -> None:
    """A named set has pixel statistics of its own, a file has not."""
    for changes, mean in (({}, (0.5,)), ({"data.mean": [0.3]}, (0.3,))):
        config = sites_config(changes)
        for data in (site_data(config.data, "digits", 0), federate(config.data, 0)):
            assert tuple(data.codec.mean) == mean

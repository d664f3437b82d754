"""Classes go by name, over domains, public sets, sites and the server's own set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedkd.config import parse_config
from fedkd.data.federation import federate
from fedkd.data.site_data import site_data
from fedkd.errors import InputError

SHADES = {"cat": 10, "cow": 20, "dog": 30}  # an image's pixels say its class


def write(path: Path, classes: list[str], count: int = 12) -> None:
    labels = np.arange(count) % len(classes)
    images = np.array([SHADES[classes[label]] for label in labels], np.uint8)[:, None, None] + np.zeros(
        (1, 8, 8), np.uint8
    )
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels, classes=np.array(classes))


def config(root: Path, **data: object) -> object:
    table = {"root": str(root), "partition": {"scheme": "domains"}, **data}
    return parse_config(
        {"data": {k: v for k, v in table.items() if v is not None}, "model": "mlp", "strategy": "fedavg"}
    ).data


def shades(images: object, classes: tuple[str, ...]) -> list[bool]:
    return [SHADES[classes[label]] == image[0, 0, 0] for image, label in zip(images.inputs, images.labels, strict=True)]


def test_domains_with_another_order_of_classes_are_mapped(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", ["cat", "cow", "dog"])
    write(tmp_path / "b.npz", ["dog", "cat", "cow"])
    data = federate(config(tmp_path, names=["npz:a.npz", "npz:b.npz"]), 0)
    assert data.classes == ("cat", "cow", "dog")
    assert all(shades(data.train, data.classes))
    assert all(shades(data.test, data.classes))


def test_a_domain_without_a_class_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", ["cat", "cow", "dog"])
    write(tmp_path / "b.npz", ["cat", "dog"])
    with pytest.raises(InputError, match="npz:b.npz lacks the classes cow of npz:a.npz"):
        federate(config(tmp_path, names=["npz:a.npz", "npz:b.npz"]), 0)


def test_labels_of_a_public_set_go_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", ["cat", "cow", "dog"])
    write(tmp_path / "public.npz", ["dog", "cat"])
    iid = {"scheme": "iid", "clients": 2}
    public = {"name": "npz:public.npz", "size": 8, "labelled": True}
    data = federate(config(tmp_path, name="npz:a.npz", partition=iid, public=public), 0)
    assert data.public is not None
    assert all(shades(data.public, data.classes))
    write(tmp_path / "a.npz", ["cat", "cow"])
    with pytest.raises(InputError, match="public.npz': it has the classes dog, which the nodes lack .*own_classes"):
        federate(config(tmp_path, name="npz:a.npz", partition=iid, public=public), 0)


def test_sites_and_their_server_go_by_name(tmp_path: Path) -> None:
    sites = {"count": 2, "classes": ["dog", "cow", "cat"], "shape": [1, 8, 8], "server": "npz:server.npz"}
    write(tmp_path / "server.npz", ["cow", "cat", "dog"])
    write(tmp_path / "one.npz", ["cat"])
    wanted = config(tmp_path, sites=sites, partition=None)
    server, site = federate(wanted, 0), site_data(wanted, "npz:one.npz", 0)
    assert server.classes == site.classes == ("dog", "cow", "cat")
    assert all(shades(server.test, server.classes))
    assert all(shades(site.train, site.classes))
    sites["classes"] = ["dog", "cow", "goat"]
    with pytest.raises(InputError, match="npz:server.npz' has the classes cat, which data.sites.classes lack"):
        federate(config(tmp_path, sites=sites, partition=None), 0)


def test_one_class_alone_is_refused_in_a_simulation(tmp_path: Path) -> None:
    write(tmp_path / "one.npz", ["cat"])
    with pytest.raises(InputError, match="only one class, cat"):
        federate(config(tmp_path, name="npz:one.npz", partition={"scheme": "iid", "clients": 2}), 0)

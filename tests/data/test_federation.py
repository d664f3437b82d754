"""The federation: domains, folders of sites, a seed of its own, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import Make
from PIL import Image

from fedkd.data.federation import federate
from fedkd.errors import InputError


def test_several_sets_are_domains(tiny: Make, mnist_root: Path) -> None:
    changes = {
        "data.name": None, "data.names": ["mnist", "svhn", "usps"], "data.root": str(mnist_root), "data.size": 16,
        "data.channels": 3, "data.partition": {"scheme": "domains", "per_domain": 2},
    }  # fmt: skip
    data = federate(tiny(changes).data, 0)
    assert data.node_domains.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.domain_names == ("mnist", "svhn", "usps")
    assert data.image_shape == (3, 16, 16)
    bounds = np.cumsum([0, 10000, 486, 2007])
    for node, domain in enumerate(data.node_domains):
        part = data.test_parts[node]
        assert ((part >= bounds[domain]) & (part < bounds[domain + 1])).all()
    with pytest.raises(InputError, match="set data.size and data.channels"):
        federate(tiny({**changes, "data.size": None}).data, 0)


def write_site(folder: Path, classes: tuple[str, ...], shade: int) -> None:
    for part, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(classes):
            home = folder / part / name
            home.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((12 + i, 10, 3), shade + label, np.uint8)  # of unequal size, as photographs are
                Image.fromarray(pixels).save(home / f"{i}.png")


def test_sites_with_image_folders_of_their_own(tiny: Make, tmp_path: Path) -> None:
    write_site(tmp_path / "north", ("healthy", "ill"), 50)
    write_site(tmp_path / "south", ("healthy", "ill"), 150)
    names = ["images:north", "images:south"]
    changes = {"name": None, "names": names, "root": str(tmp_path), "size": 8, "partition": {"scheme": "domains"}}
    config = tiny({f"data.{key}": value for key, value in changes.items()})
    data = federate(config.data, 0)
    assert data.clients == 2
    assert data.classes == ("healthy", "ill")
    for node, shade in enumerate((50, 150)):
        for images in (data.train_of(node), data.test_of(node)):
            assert np.array_equal(images.inputs[:, 0, 0, 0], shade + images.labels)
    write_site(tmp_path / "east", ("healthy", "sick"), 90)
    wrong = tiny({f"data.{key}": value for key, value in changes.items()} | {"data.names": [*names, "images:east"]})
    with pytest.raises(InputError, match="images:north lacks the classes sick of images:east"):
        federate(wrong.data, 0)


def test_the_partition_has_a_seed_of_its_own(tiny: Make) -> None:
    def parts(seed: int, partition_seed: int | None) -> list[int]:
        changes = {"data.partition.seed": partition_seed} if partition_seed is not None else {}
        return federate(tiny(changes).data, seed).train_parts.values.tolist()

    assert parts(0, None) == parts(0, None) == parts(5, 0)
    assert parts(0, None) != parts(1, None)


def test_a_node_trains_on_a_share_of_its_images(tiny: Make) -> None:
    whole, data = (federate(tiny(one).data, 0) for one in ({}, {"data.node_train": 0.8}))
    assert data.label_counts().sum(1).tolist() == [19] * 6  # of 24
    for node in range(6):
        assert set(data.train_parts[node]) < set(whole.train_parts[node])
        assert set(data.test_of(node).labels) <= set(data.train_of(node).labels)
    count = len(data.train.labels)
    assert data.notes == (f"{count - 6 * 19} of {count} training images are with no node",)
    assert federate(tiny({"data.node_train": 1.0}).data, 0).fingerprint == whole.fingerprint
    both = federate(tiny({"data.node_train": 0.8, "data.node_validation": 0.2}).data, 0)
    assert both.validation_parts is not None
    kept = np.sort(np.concatenate([both.train_parts.values, both.validation_parts.values]))
    assert np.array_equal(kept, np.sort(data.train_parts.values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.node_train": 0.0}, "data.node_train = 0.0: .*greater than 0"),
        ({"data.node_train": 1.1}, "data.node_train = 1.1: .*less than or equal to 1"),
        (
            {
                "data.sites.count": 2,
                "data.sites.spec": "s.json",
                "data.name": None,
                "data.partition": None,
                "data.node_train": 0.5,
            },
            "node_train is for a simulation: sites train on all of their own samples; remove it",
        ),
        ({"data.node_train": 0.01}, "data.node_train = 0.01: node 0 has 24 images, of which none is left"),
        ({"data.public": {"size": 1442}}, "data.public.size = 1442: there are only 1441"),
        ({"data.partition": {"scheme": "iid", "clients": 1443}}, "data.partition.clients = 1443"),
        ({"data.partition": {"scheme": "client_dirichlet", "clients": 30, "alpha": 1.0, "size": 50}}, "size = 50"),
    ],
)
def test_what_the_data_cannot_give_is_refused(tiny: Make, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        federate(tiny(changes).data, 0)

"""The federation: public set apart, test images after each node's own labels, domains, the same for the same seed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedkd import Environment
from fedkd.config import Config
from fedkd.data.federated_data import Ragged
from fedkd.data.federation import federate
from fedkd.errors import InputError
from fedkd.learning.evaluation import predict
from fedkd.messages.arrays import tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from fedkd.runs.run import run

Make = Callable[..., Config]


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6))
def test_ragged_rows_are_what_they_were(rows: list) -> None:
    ragged = Ragged.of([np.array(row, np.int64) for row in rows])
    assert [ragged[i].tolist() for i in range(len(ragged))] == rows
    with pytest.raises(IndexError):
        ragged[len(rows)]


def test_public_images_are_balanced_and_no_nodes(tiny: Make) -> None:
    config = tiny({"data.public": {"size": 105}}).data
    data = federate(config, 0)
    assert data.public is not None
    assert len(data.public.labels) == 105
    assert set(np.bincount(data.public.labels)) == {10, 11}
    assert len(data.train.labels) == 1442 - 105
    public = {image.tobytes() for image in data.public.images}
    own = {image.tobytes() for image in data.train.images}
    assert not public & own
    unbalanced = federate(tiny({"data.public": {"size": 105, "balanced": False}}).data, 0).public
    assert unbalanced is not None
    assert len(set(np.bincount(unbalanced.labels))) > 2


def test_the_public_set_may_be_another_set(tiny: Make, mnist_root: Path) -> None:
    changes = {"data.root": str(mnist_root), "data.size": 16, "data.public": {"size": 50, "name": "usps"}}
    data = federate(tiny(changes).data, 0)
    assert data.public is not None
    assert data.public.images.shape == (50, 1, 16, 16)
    assert len(data.train.labels) == 1442
    with pytest.raises(InputError, match=r"data.public.name = 'usps': its images are \(1, 16, 16\)"):
        federate(tiny({**changes, "data.size": None}).data, 0)


def test_labels_of_another_set_may_be_classes_of_their_own(tiny: Make, tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = np.repeat(labels[:, None, None] * 60, 8, 1).repeat(8, 2).astype(np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "shades.npz", classes=np.array(list("wxyz")), **arrays)
    public = {"size": 20, "name": f"npz:{tmp_path / 'shades.npz'}", "labelled": True}
    with pytest.raises(InputError, match="has 4 classes, the federation 10; own_classes = true gives them outputs"):
        federate(tiny({"data.public": public}).data, 0)
    config = tiny({"data.public": {**public, "own_classes": True}})
    data = federate(config.data, 0)
    assert data.public is not None
    assert data.priors is not None
    assert np.bincount(data.public.labels).tolist() == [0] * 10 + [5] * 4
    assert (data.public.images[:, 0, 0, 0] == (data.public.labels - 10) * 60).all()
    assert data.classes[10:] == ("shades.npz:w", "shades.npz:x", "shades.npz:y", "shades.npz:z")
    assert data.priors.shape == (6, 14)
    strategy = {"name": "fedmd", "public_epochs": 30, "private_epochs": 1}
    environment = Environment(config.model_copy(update={"strategy": tiny({"strategy": strategy}).strategy}))
    run(environment.config, tmp_path / "run")
    state = dict(load_nodes(latest(tmp_path / "run" / "checkpoints")[1]))[0]
    model = environment.model(0)
    model.load_state_dict(tensors_of(state["model"]))  # type: ignore[arg-type]
    told = predict(model, data.public, environment.preprocess).argmax(1)
    assert (told == torch.from_numpy(data.public.labels)).float().mean() > 0.9


@pytest.mark.parametrize("wrong", [{"labelled": True}, {"name": "digits"}])
def test_only_another_labelled_set_has_classes_of_its_own(tiny: Make, wrong: dict) -> None:
    with pytest.raises(InputError, match="own_classes = true: only another labelled set has them"):
        tiny({"data.public": {"size": 20, "own_classes": True, **wrong}})


def test_test_images_follow_each_nodes_own_labels(tiny: Make, mnist_root: Path) -> None:
    partition = {"scheme": "client_dirichlet", "clients": 20, "alpha": 0.3, "size": 400}
    changes = {"data.name": "mnist", "data.root": str(mnist_root), "data.partition": partition, "data.node_test": 200}
    data = federate(tiny(changes).data, 0)
    train = data.label_counts()
    assert (train.sum(1) == 400).all()
    for node in range(20):
        part = data.test_parts[node]
        assert len(np.unique(part)) == len(part) == 200
        test = np.bincount(data.test_of(node).labels, minlength=10)
        assert np.abs(test - train[node] / 2).max() < 1


def test_where_the_test_set_is_short_the_draw_shrinks_and_keeps_its_proportions(tiny: Make) -> None:
    partition = {"scheme": "classes_per_client", "clients": 10, "classes": 1}
    data = federate(tiny({"data.partition": partition, "data.node_test": 200}).data, 0)
    for node in range(10):
        labels = data.test_of(node).labels
        assert set(labels) == set(data.train_of(node).labels)
        assert len(labels) == np.bincount(data.test.labels)[labels[0]]


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
            assert np.array_equal(images.images[:, 0, 0, 0], shade + images.labels)
    write_site(tmp_path / "east", ("healthy", "sick"), 90)
    wrong = tiny({f"data.{key}": value for key, value in changes.items()} | {"data.names": [*names, "images:east"]})
    with pytest.raises(InputError, match="images:east healthy, sick"):
        federate(wrong.data, 0)


def test_the_partition_has_a_seed_of_its_own(tiny: Make) -> None:
    def parts(seed: int, partition_seed: int | None) -> list[int]:
        changes = {"data.partition.seed": partition_seed} if partition_seed is not None else {}
        return federate(tiny(changes).data, seed).train_parts.values.tolist()

    assert parts(0, None) == parts(0, None) == parts(5, 0)
    assert parts(0, None) != parts(1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.public": {"size": 1442}}, "data.public.size = 1442: there are only 1441"),
        ({"data.partition": {"scheme": "iid", "clients": 1443}}, "data.partition.clients = 1443"),
        ({"data.partition": {"scheme": "client_dirichlet", "clients": 30, "alpha": 1.0, "size": 50}}, "size = 50"),
    ],
)
def test_what_the_data_cannot_give_is_refused(tiny: Make, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        federate(tiny(changes).data, 0)


def test_test_images_follow_the_prior_of_a_group_and_not_the_few_images_of_a_node(tiny: Callable[..., Config]) -> None:
    partition = {"scheme": "groups", "clients": 4, "groups": 2, "alpha": 1.0, "size": 10}
    data = federate(tiny({"data.partition": partition, "data.node_test": 60}).data, 0)
    for node in range(4):
        shares = np.bincount(data.test_of(node).labels, minlength=10) / len(data.test_of(node).labels)
        assert np.abs(shares - data.priors[node]).sum() < 0.25
    held = data.label_counts() > 0
    tested = np.stack([np.bincount(data.test_of(n).labels, minlength=10) > 0 for n in range(4)])
    assert (tested & ~held).any()  # classes that a node has no training image of are tested too


def test_without_a_drawn_prior_it_is_what_the_node_holds(tiny: Callable[..., Config]) -> None:
    data = federate(tiny().data, 0)
    np.testing.assert_allclose(data.priors, data.label_counts() / data.label_counts().sum(1, keepdims=True))


def test_the_servers_validation_images_are_nobody_elses(tiny: Callable[..., Config]) -> None:
    changes = {"data.public": {"size": 100}, "data.validation": {"size": 50}, "data.partition.scheme": "dirichlet"}
    config = tiny({**changes, "data.partition.size": None})
    data = federate(config.data, 0)
    assert data.validation is not None
    assert data.public is not None
    assert np.bincount(data.validation.labels).tolist() == [5] * 10
    assert len(data.train.labels) == len(federate(tiny().data, 0).train.labels) - 150
    keys = [{image.tobytes() for image in part.images} for part in (data.validation, data.public, data.train)]
    assert not (keys[0] & keys[1])
    assert not (keys[0] & keys[2])


def test_only_the_first_images_of_each_class_where_asked(tiny: Callable[..., Config]) -> None:
    config = tiny(
        {"data.train_per_class": 7, "data.test_per_class": 3, "data.partition": {"scheme": "iid", "clients": 2}}
    )
    data, whole = Environment(config).data, Environment(tiny()).data
    assert np.bincount(data.train.labels).tolist() == [7] * 10
    assert np.bincount(data.test.labels).tolist() == [3] * 10
    first = [np.flatnonzero(whole.train.labels == label)[:7] for label in range(10)]
    assert np.array_equal(data.train.images, whole.train.images[np.sort(np.concatenate(first))])


def test_the_normalisation_can_be_given_and_is_undone_for_pictures(tiny: Callable[..., Config]) -> None:
    environment = Environment(tiny({"data.mean": [0.25], "data.deviation": [0.5]}))
    images = environment.data.train.images[:4]
    normalised = environment.preprocess(images)
    torch.testing.assert_close(normalised, (torch.from_numpy(images).float() / 255 - 0.25) / 0.5)
    assert np.array_equal(environment.preprocess.pixels(normalised), images)
    assert environment.preprocess.pixels(torch.full((1, 1, 2, 2), 99.0)).max() == 255
    with pytest.raises(InputError, match="data.mean = .*1 channels"):
        Environment(tiny({"data.mean": [0.5, 0.5, 0.5]}))


def test_a_million_nodes_share_images_and_a_run_asks_few(tiny: Callable[..., Config], tmp_path: Path) -> None:
    partition = {"scheme": "drawn", "clients": 1_000_000, "alpha": 0.5, "size": 16}
    changes = {"data.partition": partition, "cohort": 3}
    config = tiny(changes)
    run(config, tmp_path / "run")
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [len(line["cohort"]) for line in found] == [0, 3, 3]
    assert max(node for line in found for node in line["cohort"]) > 10_000
    assert len(found[2]["nodes"]["personal/accuracy"]) == 100  # measured, where the config does not say how many
    data = federate(config.data, config.seed)
    assert len(data.train_of(999_999).labels) == 16
    assert set(data.test_of(5).labels) <= set(data.train_of(5).labels)
    with pytest.raises(InputError, match="nodes share images, and the strategy pools them"):
        run(tiny({**changes, "strategy": "central"}), tmp_path / "central")

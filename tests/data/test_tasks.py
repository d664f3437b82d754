"""Several labels of a sample, and targets: where they are read, how they are encoded, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import SETS

from fedkd.config import DataConfig, SetsConfig
from fedkd.data.agreement import Agreement, agreement_of, to_json
from fedkd.data.arrays import from_arrays
from fedkd.data.data_files import from_file
from fedkd.data.federation import federate
from fedkd.data.samples import Dataset, checked
from fedkd.data.table_files import from_frame
from fedkd.data.writing import write_sets
from fedkd.errors import InputError

N = 60
FRAME = pd.DataFrame(
    {
        "age": np.linspace(20, 80, N),
        "town": [f"t{i % 3}" for i in range(N)],
        "price": np.linspace(1e5, 4e5, N) ** 1.1,
        "days": [i % 7 for i in range(N)],
        "warm": [i % 2 == 0 for i in range(N)],
        "old": [int(i % 5 == 0) for i in range(N)],
    }
)


def read(frame: pd.DataFrame = FRAME, **options: Any) -> Dataset:
    return checked(from_frame(frame, SetsConfig(**options), "f.csv"), "f.csv", "data.file")


def test_targets_keep_their_values_and_their_units() -> None:
    found = read(label=["price", "days"], task="regression", units={"price": "EUR"}, node="town", drop=["warm", "old"])
    assert found.classes == ("price", "days")
    assert found.about.units == ("EUR", "")
    assert [column.name for column in found.about.columns] == ["age"]
    assert (len(found.train.labels), len(found.test.labels)) == (48, 12)  # a fifth of each town
    both = np.concatenate([found.train.labels, found.test.labels])
    assert sorted(both[:, 0]) == sorted(FRAME["price"])
    assert both.dtype == np.float64


def test_labels_that_are_true_or_false() -> None:
    found = read(label=["warm", "old"], task="multilabel", node="town")
    assert (found.classes, found.about.task) == (("warm", "old"), "multilabel")
    assert found.train.labels.sum(0).tolist() == [
        sum(FRAME["warm"]) - found.test.labels[:, 0].sum(), sum(FRAME["old"]) - found.test.labels[:, 1].sum()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "price"}, 'are no whole numbers.*To predict numbers, set data.task = "regression"'),
        ({"label": "town", "task": "regression"}, "data.label = 'town': f.csv has 't0' there; .* valid are numbers"),
        ({"label": ["warm", "days"], "task": "multilabel"}, r"data.label\[1\] = 'days': .* not 0 or 1, such as 2"),
        ({"label": ["warm", "warm"], "task": "multilabel"}, "data.label names the column 'warm' twice"),
        ({"label": ["warm", "cold"], "task": "multilabel"}, r"data.label\[1\] = 'cold': f.csv has no such column"),
        ({"label": ["price"], "task": "regression", "node": "price"}, "data.node and data.label both name"),
        (
            {"label": "price", "task": "regression", "columns": {"price": "numeric"}},
            "data.columns.price: it is a label",
        ),
    ],
)
def test_wrong_labels_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**options)


def test_targets_that_are_missing_or_infinite_are_refused() -> None:
    frame = FRAME.copy()
    frame.loc[3, "price"] = np.inf
    with pytest.raises(InputError, match="1 values of f.csv are not finite and at most 1e.15, such as inf.* at 3"):
        read(frame, label="price", task="regression")
    frame.loc[3, "price"] = np.nan
    with pytest.raises(InputError, match=r"1 of 60 rows of f.csv have no label, the first at 3"):
        read(frame, label=["days", "price"], task="regression")
    assert len(read(frame, label="price", task="regression", drop_unlabelled=True).train.labels) == 47


def test_options_of_classes_are_refused_in_a_config() -> None:
    with pytest.raises(ValueError, match="train_per_class is for classes; task is 'regression'"):
        SetsConfig(task="regression", train_per_class=3)
    with pytest.raises(ValueError, match="label is a list"):
        SetsConfig(label=["a", "b"])


def arrays(y: np.ndarray, **more: np.ndarray) -> dict[str, np.ndarray]:
    x = np.linspace(0, 1, len(y) * 3).reshape(-1, 3)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "kind": np.array("table"), **more}


def test_arrays_have_targets_or_labels_in_columns() -> None:
    found = from_arrays(arrays(np.linspace(0, 1, 8)), SetsConfig(task="regression"), "f.npz")
    assert (found.train.labels.shape, found.classes) == ((8, 1), ("0",))
    labels = np.eye(8)[:, :3]
    found = from_arrays(arrays(labels, classes=np.array(["a", "b", "c"])), SetsConfig(task="multilabel"), "f.npz")
    np.testing.assert_array_equal(found.train.labels, labels)
    assert found.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("y", "task", "message"),
    [
        (np.linspace(0, 1, 8), "classification", "it is float64, 8, .* set data.task"),
        (np.linspace(0, 1, 8), "multilabel", "it must be 0 or 1, N x labels, for each of 8 samples"),
        (np.eye(8) * 2, "multilabel", "8 values of f.npz are not 0 or 1, such as 2"),
        (np.ones((8, 2, 2)), "regression", "it must be numbers, N or N x targets"),
        (np.array(["a"] * 8), "regression", "it must be numbers, N or N x targets"),
        (np.array([np.nan] * 8), "regression", "8 values of f.npz are not finite"),
        (np.array([1e16] * 8), "regression", "8 values of f.npz are not finite and at most 1e.15, such as 1e.16"),
        (np.zeros((0, 2)), "regression", "y_train in f.npz has no sample"),
    ],
)
def test_wrong_arrays_are_refused(y: np.ndarray, task: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays(arrays(y), SetsConfig(task=task), "f.npz")  # type: ignore[arg-type]


def test_both_parts_have_the_same_targets() -> None:
    one = {**arrays(np.ones((8, 2))), "y_test": np.ones((8, 1))}
    with pytest.raises(InputError, match="y_test in f.npz is float64, 8 x 1, but y_train is float64, 8 x 2"):
        from_arrays(one, SetsConfig(task="regression"), "f.npz")


def config(path: Path, **options: Any) -> DataConfig:
    table = {"file": str(path), "label": "price", "task": "regression", "node": "town", "node_test": 4, **options}
    return DataConfig(**table)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    FRAME.to_csv(tmp_path / "f.csv", index=False)
    return tmp_path / "f.csv"


def test_targets_are_scaled_by_training_rows_of_nodes_only(file: Path) -> None:
    data = federate(config(file, partition={"scheme": "natural"}, public={"size": 6}), 0)
    own = data.train.labels[np.concatenate([data.train_parts[node] for node in range(3)])]
    assert len(own) == 42  # 48 training rows without the public set
    assert data.codec.target_mean[0] == pytest.approx(own.mean(), rel=1e-12)
    scaled = data.codec.targets(own)
    assert scaled.dtype == np.float32
    assert [float(scaled.mean()), float(scaled.std())] == pytest.approx([0, 1], abs=1e-6)
    np.testing.assert_allclose(data.codec.predictions(scaled), own, rtol=1e-6)


def test_constant_targets_are_not_divided_by_zero(file: Path) -> None:
    pd.read_csv(file).assign(price=0.1).to_csv(file, index=False)  # its mean is rounded
    data = federate(config(file, partition={"scheme": "natural"}), 0)
    assert np.abs(data.codec.targets(data.train.labels)).max() < 1e-12
    assert any("3 nodes have equal labels on all training samples" in note for note in data.notes)
    assert "target 'price' is constant in all training samples" in data.notes


@pytest.mark.parametrize("scheme", ["dirichlet", "shards", "ways", "flwr_datasets.partitioner:DirichletPartitioner"])
def test_targets_have_no_classes_to_split_by(file: Path, scheme: str) -> None:
    options = {"num_partitions": 3, "alpha": 0.5} if scheme.startswith("flwr") else {"clients": 3}
    with pytest.raises(InputError, match="splits by classes, and a regression has none; valid are iid, quantity"):
        federate(config(file, partition={"scheme": scheme, **options}), 0)


def test_flowers_continuous_partitioner_splits_by_the_target(file: Path) -> None:
    scheme = "flwr_datasets.partitioner:ContinuousPartitioner"
    partition = {"scheme": scheme, "num_partitions": 3, "strictness": 1.0, "partition_by": "label"}
    data = federate(config(file, partition=partition), 0)
    ranges = sorted((data.train_of(node).labels.min(), data.train_of(node).labels.max()) for node in range(3))
    assert all(first[1] < second[0] for first, second in itertools.pairwise(ranges))


def test_several_labels_are_split_by_the_rarest(file: Path) -> None:
    options = {"label": ["warm", "old"], "task": "multilabel", "partition": {"scheme": "shards", "clients": 3}}
    data = federate(config(file, **options), 0)
    assert data.counted == ("warm", "old")
    np.testing.assert_array_equal(data.label_counts().sum(0), data.train.labels.sum(0))


def test_written_sets_are_read_again(file: Path, tmp_path: Path) -> None:
    data = federate(config(file, label=["price", "days"], partition={"scheme": "natural"}), 0)
    paths = write_sets(data, tmp_path / "sets")
    again = from_file(paths[0], SetsConfig(label=["price", "days"], task="regression", split="split"))
    np.testing.assert_array_equal(again.train.labels, data.train_of(0).labels)


def test_sites_agree_on_task_units_and_scaling(file: Path) -> None:
    data = federate(config(file, partition={"scheme": "natural"}, units={"price": "EUR"}), 0)
    read_again = agreement_of(to_json(Agreement(data.codec, data.node_classes)))
    assert read_again.codec.hash == data.codec.hash
    assert read_again.classes == ("price",)
    other = data.spec.model_copy(update={"units": ("USD",)})
    assert data.spec.misfit(other) == ["its targets are in USD, here in EUR"]
    other = data.spec.model_copy(update={"task": "multilabel"})
    assert data.spec.misfit(other) == ["its task is multilabel, here it is regression"]


@pytest.mark.skipif(not (SETS / "ames.parquet").exists(), reason="no real sets here")
def test_a_real_table_of_prices() -> None:
    options = {"label": "Sale_Price", "task": "regression", "node": "Neighborhood"}
    found = from_file(SETS / "ames.parquet", SetsConfig(**options))
    assert len(found.train.labels) + len(found.test.labels) == 2930
    assert found.about.shape == (72,)


def test_lists_of_classes_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {"x": datasets.Value("float64"), "tags": datasets.List(datasets.ClassLabel(names=["red", "green", "x"]))}
    )
    rows = {"x": [float(i) for i in range(20)], "tags": [[0], [1, 2], [], [0, 1]] * 5}
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(tmp_path / "set"))
    found = from_file(tmp_path / "set", SetsConfig(label="tags", task="multilabel"))
    assert found.classes == ("red", "green", "tags: x")
    with pytest.raises(
        InputError, match=r"data.label\[0\] = 'tags': .* has classes there; it must be numbers, or one list"
    ):
        from_file(tmp_path / "set", SetsConfig(label=["tags", "x"], task="multilabel"))
    with pytest.raises(InputError, match="data.label = 'tags': .* has classes there; it must be numbers"):
        from_file(tmp_path / "set", SetsConfig(label="tags", task="regression"))
    for inputs, labels in zip(found.train.inputs, found.train.labels, strict=True):
        wanted = [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]][int(inputs[0]) % 4]
        assert labels.tolist() == wanted

"""Partitioners of flwr_datasets as schemes."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.config.data import DataConfig
from fedkd.data.federation import federate
from fedkd.data.partitions import split
from fedkd.data.splits import Pool, Split
from fedkd.errors import InputError

pytest.importorskip("flwr_datasets", reason="needs fedkd[hub]")
LABELS = np.arange(100) % 3
HOLDERS = np.arange(100) // 15
POOL = Pool(
    LABELS, np.zeros(100, np.int64), ("a", "b", "c"), ("s",), HOLDERS, tuple(f"h{i}" for i in range(7)),
    {"age": np.linspace(0, 9, 100), "gaps": np.where(LABELS == 0, np.nan, 1.0)},
)  # fmt: skip


def parts_of(name: str, seed: int = 1, minimum: int = 1, **options: Any) -> Split:
    table = {"scheme": f"flwr_datasets.partitioner:{name}", "minimum": minimum, **options}
    return split(POOL, table, np.random.default_rng(0), seed)


def sizes(*given: Any, **options: Any) -> list[int]:
    return [len(part) for part in parts_of(*given, **options).parts]


def test_the_seed_is_the_runs_unless_given() -> None:
    dirichlet = {"name": "DirichletPartitioner", "num_partitions": 4, "alpha": 0.5, "min_partition_size": 2}
    assert sizes(**dirichlet) == [20, 59, 17, 4]
    assert sizes(**dirichlet, seed=5) != [20, 59, 17, 4]
    table = {"scheme": "flwr_datasets.partitioner:DirichletPartitioner", "minimum": 1, **dirichlet}
    del table["name"]
    assert [len(p) for p in split(POOL, table | {"seed": 1}, np.random.default_rng(0), 9).parts] == [20, 59, 17, 4]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("IidPartitioner", {"num_partitions": 4}, [25] * 4),
        ("LinearPartitioner", {"num_partitions": 4}, [10, 20, 30, 40]),
        ("SizePartitioner", {"partition_sizes": [5, 10]}, [5, 10]),
        ("ShardPartitioner", {"num_partitions": 4, "num_shards_per_partition": 2}, [24] * 4),
        ("PathologicalPartitioner", {"num_partitions": 3, "num_classes_per_partition": 1}, None),
        ("ContinuousPartitioner", {"num_partitions": 4, "partition_by": "age", "strictness": 1.0}, [25] * 4),
        ("NaturalIdPartitioner", {}, [15] * 6 + [10]),
        ("GroupedNaturalIdPartitioner", {"group_size": 2}, [30, 30, 30, 10]),
    ],
)
def test_each_partitioner_says_who_has_which_row(name: str, options: dict, expected: list[int] | None) -> None:
    found = parts_of(name, **options)
    rows = np.concatenate(found.parts)  # type: ignore[arg-type]
    assert len(set(rows.tolist())) == len(rows)
    if expected is not None:
        assert sorted(len(part) for part in found.parts) == sorted(expected)
    if "Natural" in name:
        assert found.holders is not None
        for part, holders in zip(found.parts, found.holders, strict=True):
            assert set(HOLDERS[part]) == set(holders)
    else:
        assert found.holders is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "VerticalEvenPartitioner", "num_partitions": 2}, "it gives columns to nodes, not rows"),
        ({"name": "IdToSizeFncPartitioner", "num_partitions": 2}, "it needs a function, which a config cannot give"),
        ({"name": "DirichletPartitoner"}, "did you mean 'flwr_datasets.partitioner:DirichletPartitioner'"),
        ({"name": "IidPartitioner"}, "data.partition.num_partitions: is missing"),
        ({"name": "IidPartitioner", "clients": 3}, "data.partition.clients: unknown key"),
        ({"name": "IidPartitioner", "num_partitions": "3"}, "num_partitions = '3'"),
        ({"name": "IidPartitioner", "num_partitions": 0}, "raised ValueError"),
        (
            {"name": "IidPartitioner", "num_partitions": 101},
            "num_partitions = 101: 101 samples are needed, but there are 100",
        ),
        (
            {"name": "IidPartitioner", "num_partitions": 60, "minimum": 2},
            "minimum = 2: the smallest node got 1 samples",
        ),
        (
            {"name": "NaturalIdPartitioner", "partition_by": "hospital"},
            "partition_by = 'hospital': the set has no such",
        ),
        (
            {"name": "NaturalIdPartitioner", "partition_by": "gaps"},
            "partition_by = 'gaps': 34 values are missing there",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parts_of(**options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("flwr_datasets"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"IidPartitioner' needs flwr-datasets: pip install 'fedkd\[hub\]'"):
        parts_of("IidPartitioner", num_partitions=2)


def test_in_a_federation(tmp_path: Path) -> None:
    lines = [f"{i},{'mf'[i % 2]},h{i % 4},{i % 3}" for i in range(100)]
    (tmp_path / "f.csv").write_text("\n".join(["age,sex,site,ill", *lines]))

    def made(seed: int = 0, **partition: Any) -> Any:
        scheme = f"flwr_datasets.partitioner:{partition.pop('name')}"
        config = {"file": str(tmp_path / "f.csv"), "label": "ill", "node": "site"}
        return federate(DataConfig(**config, partition={"scheme": scheme, **partition}), seed)

    shards = made(name="ShardPartitioner", num_partitions=3, num_shards_per_partition=3)
    left = len(shards.train.labels) - shards.train_parts.lengths().sum()
    assert left > 0
    assert f"{left} of {len(shards.train.labels)} training rows are with no node" in shards.notes
    natural = made(name="NaturalIdPartitioner")
    assert sorted(natural.node_names) == ["h0", "h1", "h2", "h3"]
    assert natural.test_parts.lengths().sum() == len(natural.test.labels)
    by_sex = made(name="NaturalIdPartitioner", partition_by="sex")
    assert by_sex.clients == 2
    assert {len(set(by_sex.train_of(node).inputs[:, 1])) for node in range(2)} == {1}
    one, two = (
        made(seed=s, name="DirichletPartitioner", num_partitions=3, alpha=0.5, partition_by="ill") for s in (0, 1)
    )
    assert one.train_parts.lengths().tolist() != two.train_parts.lengths().tolist()

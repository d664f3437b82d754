"""Each node's samples, written and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedkd.config import SetsConfig
from fedkd.config.data import DataConfig
from fedkd.data.data_files import from_file
from fedkd.data.federation import federate
from fedkd.data.writing import write_sets

RNG = np.random.default_rng(0)
X: dict[str, Any] = {
    "image": RNG.integers(0, 255, (40, 4, 5, 2)).astype(np.uint8),
    "float": RNG.normal(size=(40, 4, 5)).astype(np.float32),
    "series": np.where(np.arange(9) < RNG.integers(2, 9, (40, 1, 1)), RNG.normal(size=(40, 3, 9)), np.nan),
    "tokens": np.where(np.arange(8) < RNG.integers(1, 8, (40, 1)), RNG.integers(4, 9, (40, 8)), 0),
    "array": RNG.normal(size=(40, 2, 2, 2)),
}


@pytest.mark.parametrize("name", list(X))
def test_arrays_come_back(name: str, tmp_path: Path) -> None:
    kind = "image" if name == "float" else name
    x, y = X[name], np.arange(40) % 2
    np.savez(tmp_path / "all.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    config = DataConfig(file=str(tmp_path / "all.npz"), kind=kind, partition={"scheme": "iid", "clients": 2})
    data = federate(config, 0)
    paths = write_sets(data, tmp_path / "nodes")
    for node, path in enumerate(paths):
        back = from_file(path, SetsConfig(length=data.spec.shape[-1]) if kind == "series" else SetsConfig())
        assert back.about.kind == kind
        for one, two in ((back.train, data.train_of(node)), (back.test, data.test_of(node))):
            assert np.array_equal(one.inputs, two.inputs, equal_nan=kind not in ("image", "tokens"))
            assert np.array_equal(one.labels, two.labels)


def test_tables_come_back(tmp_path: Path) -> None:
    lines = [f"{i if i % 7 else ''},{['f', 'm', ''][i % 3]},{'ab'[i % 2]},{i // 20}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["age,sex,label,site", *lines]))
    config = DataConfig(file=str(tmp_path / "t.csv"), label="label", node="site", partition={"scheme": "natural"})
    data = federate(config, 0)
    for node, path in enumerate(write_sets(data, tmp_path / "nodes")):
        back = from_file(path, SetsConfig(label="label", split="split"))
        assert back.about == data.spec
        assert np.array_equal(back.train.inputs, data.train_of(node).inputs, equal_nan=True)
        assert np.array_equal(back.test.labels, data.test_of(node).labels)

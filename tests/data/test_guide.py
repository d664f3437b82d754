"""The page on one's own data: its configs are valid, its function works, and all it names exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import HOME, SETS
from helpers.docs import blocks

from fedkd.config.data import DataConfig
from fedkd.data.arrays import NAMES
from fedkd.data.datasets import load
from fedkd.data.federation import federate

PAGE = "docs/data.md"
CONFIGS = blocks(PAGE, "toml")


@pytest.mark.parametrize("text", CONFIGS)
def test_the_configs_make_federations(text: str, tmp_path: Path) -> None:
    table = tomllib.loads(text)["data"]
    if table["file"] == "motions.npz":
        x = np.zeros((12, 2, 9), np.float32)
        np.savez(tmp_path / "motions.npz", x_train=x, y_train=np.arange(12) % 2, x_test=x, y_test=np.arange(12) % 2)
        table["file"] = str(tmp_path / "motions.npz")
    elif not SETS.is_dir():
        pytest.skip("the real sets are not beside the project")
    else:
        table["file"] = str(SETS / table["file"])
    assert federate(DataConfig(**table), 0).clients > 1


def test_the_function_makes_a_set(tmp_path: Path) -> None:
    (code,) = blocks(PAGE, "python")
    (tmp_path / "mine.py").write_text(code)
    data = load(f"{tmp_path}/mine.py:load", tmp_path, download=False, size=None, channels=None)
    assert data.about.kind == "table"
    assert (len(data.train.labels), len(data.test.labels)) == (80, 20)


def test_the_page_names_all_arrays_and_keys() -> None:
    text = (HOME / PAGE).read_text() + (HOME / "docs/configs.md").read_text()
    said = set(re.findall(r"`(\w+)`", text))
    assert set(NAMES) <= said
    assert set(DataConfig.model_fields) <= said

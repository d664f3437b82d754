"""Files that would take most of the memory are refused before they are read; mapped ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedkd.config import SetsConfig
from fedkd.data import memory
from fedkd.data.data_files import from_file
from fedkd.errors import InputError

ROWS = 400
COLUMNS = SetsConfig(label="y")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one set of 400 rows of 2 columns as CSV, Parquet, npz, and as folders of npy and Parquet."""
    frame = pd.DataFrame({"a": np.arange(ROWS) / 4, "y": np.arange(ROWS) % 2})
    frame.to_csv(tmp_path / "s.csv", index=False)
    frame.to_parquet(tmp_path / "s.parquet")
    (tmp_path / "parts").mkdir()
    for part in (0, 1):
        frame[part::2].to_parquet(tmp_path / "parts" / f"{part}.parquet")
    images = np.zeros((100, 8, 8), np.uint8)
    labels = np.arange(100) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez_compressed(tmp_path / "s.npz", **arrays)
    (tmp_path / "npy").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "npy" / f"{name}.npy", array)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "size", "fix"),
    [
        ("s.csv", None, "write it as Parquet"),
        ("s.parquet", ROWS * 2 * 8, "leave out columns or rows"),
        ("parts", ROWS * 2 * 8, "leave out columns or rows"),
        ("s.npz", 2 * (100 * 64 + 128 + 100 * 8 + 128), r"write its arrays as \.npy files into a folder"),
    ],
)
def test_a_set_of_more_than_half_of_the_memory_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int | None, fix: str
) -> None:
    size = (folder / name).stat().st_size if size is None else size
    monkeypatch.setattr(memory, "machine_memory", lambda: 2 * size)
    assert len(from_file(folder / name, COLUMNS).classes) == 2  # exactly half of it
    monkeypatch.setattr(memory, "machine_memory", lambda: 2 * size - 1)
    with pytest.raises(InputError, match=rf"{name} would take about .* GB of memory, more than half of .* GB; {fix}"):
        from_file(folder / name, COLUMNS)


def test_a_folder_of_mapped_arrays_is_never_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 1)
    assert from_file(folder / "npy", COLUMNS).train.inputs.shape == (100, 1, 8, 8)


def test_texts_in_parquet_count_with_their_letters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(str, rng.integers(0, 10, 1000))) for _ in range(20)]
    pd.DataFrame({"t": texts, "y": np.arange(20) % 2}).to_parquet(folder / "t.parquet")
    monkeypatch.setattr(memory, "machine_memory", lambda: 30_000)
    with pytest.raises(InputError, match="t.parquet would take about"):
        from_file(folder / "t.parquet", SetsConfig(label="y", text="t"))

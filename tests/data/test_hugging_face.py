"""Folders that Hugging Face's `datasets` has written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SETS
from PIL import Image as Pictures

from fedkd.config import SetsConfig
from fedkd.config.data import DataConfig
from fedkd.data.data_files import from_file
from fedkd.data.federation import federate
from fedkd.data.samples import Dataset as Set
from fedkd.data.samples import checked
from fedkd.errors import InputError

datasets = pytest.importorskip("datasets", reason="needs fedkd[hub]")
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value  # noqa: E402

RNG = np.random.default_rng(0)
N = 30


@pytest.fixture(autouse=True)
def _no_bars() -> Any:
    datasets.utils.disable_progress_bars()


def saved(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None, **splits: int) -> Path:
    """Write a folder: one set, or splits with so many rows each."""
    whole = Dataset.from_dict(columns, features=None if features is None else Features(features))
    if not splits:
        whole.save_to_disk(path)
        return path
    parts, first = {}, 0
    for name, count in splits.items():
        parts[name] = whole.select(range(first, first + count))
        first += count
    DatasetDict(parts).save_to_disk(path)
    return path


def read(path: Path, **options: Any) -> Set:
    return checked(from_file(path, SetsConfig(**{"label": "y", **options})), "folder", "data.file")


def png(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Pictures.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


LABELS = [i % 3 for i in range(N)]
CLASSES = ClassLabel(names=["cat", "ant", "bee"])


@pytest.mark.parametrize(("shape", "wanted"), [((4, 5), (1, 4, 5)), ((4, 5, 3), (3, 4, 5))])
def test_images_are_read_as_they_are(tmp_path: Path, shape: tuple, wanted: tuple) -> None:
    pixels = RNG.integers(0, 255, (N, *shape)).astype(np.uint8)
    columns = {"x": [png(one) for one in pixels], "y": LABELS, "more": LABELS}
    features = {"x": Image(), "y": CLASSES, "more": Value("int64")}
    data = read(saved(tmp_path / "s", columns, features, train=24, test=6))
    assert data.classes == ("cat", "ant", "bee")  # not sorted: the labels' own order
    assert data.about.shape == wanted
    assert np.array_equal(
        np.squeeze(data.test.inputs), np.squeeze(np.moveaxis(pixels, -1, 1) if len(shape) == 3 else pixels)[24:]
    )
    assert data.test.labels.tolist() == LABELS[24:]
    assert data.notes == ("only the images of 'x' are used, not the columns more",)
    assert read(tmp_path / "s", size=8).train.inputs.shape[2:] == (8, 8)
    drawn = read(saved(tmp_path / "one", columns, features), drop=["more"])
    assert len(drawn.test.labels) == 6
    assert drawn.notes == ()


def test_sixteen_bits_stay(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 60000, (N, 4, 4)).astype(np.uint16)
    data = read(saved(tmp_path / "s", {"x": [png(one) for one in pixels], "y": LABELS}, {"x": Image(), "y": CLASSES}))
    assert data.about.largest == 65535
    assert data.train.inputs.dtype == np.uint16


def test_lists_are_series(tmp_path: Path) -> None:
    ragged = [[[float(i + t) for t in range(3 + i % 4)] for _ in range(2)] for i in range(N)]
    data = read(saved(tmp_path / "a", {"x": ragged, "y": LABELS}, {"x": List(List(Value("float32"))), "y": CLASSES}))
    assert data.about.kind == "series"
    assert data.about.shape == (2, 6)
    flat = [one[0] for one in ragged]
    assert read(saved(tmp_path / "b", {"x": flat, "y": LABELS})).about.shape == (1, 6)
    matrix = {"x": RNG.normal(size=(N, 2, 5)).astype(np.float32), "y": LABELS}
    saved(tmp_path / "c", matrix, {"x": Array2D((2, 5), "float32"), "y": CLASSES})
    assert read(tmp_path / "c").about.shape == (2, 5)
    assert read(tmp_path / "c", kind="array").about.kind == "array"
    flat[3][1] = None  # type: ignore[call-overload]
    saved(tmp_path / "d", {"x": flat, "y": LABELS})
    with pytest.raises(InputError, match="1 values of x_t.* are missing .*; set data.missing = 'zero' or 'hold'"):
        read(tmp_path / "d")


def test_plain_columns_are_a_table_or_texts(tmp_path: Path) -> None:
    columns = {"age": [1.5 * i for i in range(N)], "sex": ["m", "f"] * 15, "kind": LABELS, "y": ["no", "yes"] * 15}
    features = {"age": Value("float64"), "sex": Value("string"), "kind": CLASSES, "y": Value("string")}
    path = saved(tmp_path / "s", columns, features, train=20, test=10)
    data = read(path)
    assert [column.categories for column in data.about.columns] == [None, ("f", "m"), ("ant", "bee", "cat")]
    assert data.classes == ("no", "yes")
    assert len(data.test.labels) == 10
    texts = read(path, text="sex", node="kind")
    assert texts.about.kind == "tokens"
    assert texts.nodes is not None
    assert set(texts.nodes[0]) == {"ant", "bee", "cat"}


@pytest.mark.parametrize(
    ("columns", "features", "splits", "options", "message"),
    [
        ({"x": [1.0] * N, "y": LABELS}, None, {"dev": 20, "test": 10}, {}, "has no split 'train'; it has dev, test"),
        ({"x": [{"a": 1}] * N, "y": LABELS}, None, {}, {}, "column 'x' of .* is of type .*; valid are Value, ClassLab"),
        ({"x": [["a"]] * N, "y": LABELS}, None, {}, {}, "column 'x' of .* is of type .*List"),
        ({"x": [[1.0]] * N, "z": [[1.0]] * N, "y": LABELS}, None, {}, {}, r"has 2 columns that may be the input: x \("),
        ({"x": [[1.0]] * N, "y": LABELS}, None, {}, {"label": "x"}, "data.label = 'x': .* has lists there"),
        ({"x": [[1.0]] * N, "y": LABELS}, None, {}, {"label": "z"}, "data.label = 'z': .* has no such column"),
        ({"x": [[1.0]] * N, "y": LABELS}, None, {}, {"kind": "image"}, "data.kind = 'image': the column 'x' can be se"),
        ({"x": [[[1.0], [1.0, 2.0]]] * N, "y": LABELS}, None, {}, {}, "has channels of unlike lengths in row"),
        ({"x": [[[1.0]] * (1 + i % 2) for i in range(N)], "y": LABELS}, None, {}, {}, "series of unlike shapes, .*: 1"),
        ({"x": [[1.0]] * N, "y": [-1] * N}, {"x": List(Value("float32")), "y": CLASSES}, {}, {}, "30 of 30 rows .* no"),
        (
            {"x": [png(np.zeros((4, 4 + i % 2), np.uint8)) for i in range(N)], "y": LABELS},
            {"x": Image(), "y": CLASSES}, {}, {}, "its images are of 2 sizes, such as 4 x 4 and 5 x 4 pixels; set da",
        ),
        (
            {"x": [{"bytes": b"no image", "path": None}] * N, "y": LABELS},
            {"x": Image(), "y": CLASSES}, {}, {}, "the image in row . of .*, column 'x', cannot be read: cannot",
        ),
    ],
)  # fmt: skip
def test_what_is_no_set_is_refused(
    tmp_path: Path, columns: dict, features: dict | None, splits: dict, options: dict, message: str
) -> None:
    saved(tmp_path / "s", columns, features, **splits)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "s", **options)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "s", {"x": [1.0] * N, "y": LABELS})
    next(path.glob("*.arrow")).write_bytes(b"no table")
    with pytest.raises(InputError, match="s cannot be read: "):
        read(path)


@pytest.mark.skipif(not SETS.is_dir(), reason="the real sets are not beside the project")
def test_real_digits() -> None:
    config = {"label": "label", "node": "block", "partition": {"scheme": "natural"}}
    data = federate(DataConfig(file=str(SETS / "digits_hf"), **config), 0)
    assert data.spec.shape == (1, 8, 8)
    assert data.node_names == tuple(f"block-{i}" for i in range(6))
    assert (len(data.train.labels), len(data.test.labels)) == (1438, 359)
    assert data.classes == tuple(map(str, range(10)))
    from sklearn.datasets import load_digits

    digits = load_digits()
    kept = np.arange(1797) % 5 == 4
    theirs = digits.images[kept]
    assert data.test.labels.tolist() == digits.target[kept].tolist()
    assert np.corrcoef(data.test.inputs.ravel(), theirs.ravel())[0, 1] > 0.999


def test_lists_of_ids_are_tokens_if_the_kind_says_so(tmp_path: Path) -> None:
    ids = [[1 + i % 7, 2, 3][: 1 + i % 3] for i in range(N)]
    folder = saved(tmp_path / "ids", {"ids": ids, "y": LABELS}, {"ids": List(Value("int32")), "y": CLASSES})
    found = read(folder, kind="tokens")
    assert (found.about.kind, found.train.inputs.dtype) == ("tokens", np.int64)
    rows = np.concatenate([found.train.inputs, found.test.inputs])
    assert sorted(tuple(row[row > 0].tolist()) for row in rows) == sorted(map(tuple, ids))
    assert any("data.kind = 'tokens' takes them as ids" in note for note in read(folder).notes)
    folder = saved(tmp_path / "no", {"x": [[0.5, 1.0]] * N, "y": LABELS}, {"x": List(Value("float32")), "y": CLASSES})
    with pytest.raises(InputError, match="data.kind = 'tokens': column 'x' of .* has no lists of whole numbers"):
        read(folder, kind="tokens")

"""Arrays of any kind, from an archive or a folder of mapped files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SETS

from fedkd.config import SetsConfig
from fedkd.config.data import DataConfig
from fedkd.data.arrays import from_arrays
from fedkd.data.data_files import from_file
from fedkd.data.datasets import load
from fedkd.data.federation import federate
from fedkd.data.samples import Dataset, checked
from fedkd.errors import InputError

RNG = np.random.default_rng(0)
LABELS = np.arange(12) % 3


def arrays(x: np.ndarray, **more: Any) -> dict[str, Any]:
    found = {"x_train": x, "y_train": np.arange(len(x)) % 3, "x_test": x[:6], "y_test": np.arange(6) % 3, **more}
    return {key: value for key, value in found.items() if value is not None}


def read(given: dict[str, Any], **options: Any) -> Dataset:
    return checked(from_arrays(given, SetsConfig(**options), "s"), "s")


def series(**more: Any) -> dict[str, Any]:
    x = RNG.normal(size=(12, 2, 5)).astype(np.float16)
    length = np.array([5, 3] * 6)
    return arrays(x, **{"length_train": length, "length_test": length[:6], **more})


@pytest.mark.parametrize(
    ("dtype", "shape", "wanted", "largest"),
    [
        (np.uint8, (12, 4, 5), (1, 4, 5), 255),
        (np.uint8, (12, 3, 3, 4), (4, 3, 3), 255),
        (np.uint16, (12, 4, 4, 5), (5, 4, 4), 65535),
        (np.float32, (12, 4, 4), (1, 4, 4), None),
        (np.float64, (12, 4, 4, 2), (2, 4, 4), None),
    ],
)
def test_images_of_any_type_and_number_of_channels(dtype: Any, shape: tuple, wanted: tuple, largest: float) -> None:
    x = (RNG.random(shape) * 200).astype(dtype)
    data = read(arrays(x), **({"kind": "image"} if largest is None else {}))
    assert data.about.kind == "image"
    assert data.about.shape == wanted
    assert data.about.largest == largest
    assert data.train.inputs.dtype == (np.float32 if largest is None else dtype)
    assert np.allclose(data.train.inputs[1, -1], x[1] if x.ndim == 3 else x[1, ..., -1])


def test_series_end_where_their_length_says() -> None:
    given = series()
    data = read(given)
    assert data.about.kind == "series"
    assert data.about.shape == (2, 5)
    assert data.train.inputs.dtype == np.float32
    assert np.isnan(data.train.inputs[1, :, 3:]).all()
    assert np.array_equal(data.train.inputs[0], given["x_train"][0].astype(np.float32))
    # without lengths, with other ones in the test part, of one channel, with names
    x = np.full((12, 6), np.nan, np.float32)
    x[:, :4] = 1
    longer = np.ones((6, 8), np.float32)
    data = read({**arrays(x, kind=np.array("series"), channels=np.array(["pulse"])), "x_test": longer})
    assert data.train.inputs.shape == (12, 1, 8)
    assert data.about.columns[0].name == "pulse"
    assert np.isnan(data.train.inputs[:, :, 4:]).all()
    assert read(given, length=9).about.shape == (2, 9)
    cut = read(given, length=4, longer="cut")
    assert cut.about.shape == (2, 4)
    assert cut.notes[0] == "6 series of x_train in s have more than 4 steps and are cut at the end"


def test_last_steps_without_a_value_are_behind_the_end() -> None:
    given = series()
    given["x_train"][0, :, 4] = np.nan
    data = read(given)
    assert np.isnan(data.train.inputs[0, 0]).tolist() == [False] * 4 + [True]
    assert data.notes[0] == "1 series of x_train in s have no value in their last steps, and end before them"
    given["x_train"][0] = [[np.nan] * 4 + [1.0]] * 2
    with pytest.raises(InputError, match="1 series of x_train in s have no steps, the first at 0"):
        read(given, length=4, longer="cut", missing="zero")


def test_gaps_are_refused_or_filled() -> None:
    given = series()
    given["x_train"][0, 0, [0, 2]] = np.nan
    with pytest.raises(
        InputError, match=r"2 values of x_train in s are missing .*\[0, 0, 0\], \[0, 0, 2\]; set data.m"
    ):
        read(given)
    with pytest.raises(InputError, match="data.missing = 'refuse': 2 values"):
        read(given, missing="refuse")
    zero, hold = read(given, missing="zero"), read(given, missing="hold")
    assert np.isnan(zero.train.inputs[0, 0]).tolist() == [True, False, True, False, False]
    assert np.isnan(hold.train.inputs[0, 0]).tolist() == [True, False, False, False, False]
    assert hold.train.inputs[0, 0, 2] == hold.train.inputs[0, 0, 1]
    assert hold.notes[0] == "2 values of x_train in s are missing; each becomes the value before"


def test_tables_and_free_arrays() -> None:
    x = RNG.normal(size=(12, 3))
    data = read(arrays(x, kind=np.array("table"), columns=np.array(["a", "b", "c"])))
    assert [column.name for column in data.about.columns] == ["a", "b", "c"]
    assert data.train.inputs is x
    assert read(arrays((x * 9).astype(np.int32)), kind="table").train.inputs.dtype == np.float64
    free = read(arrays(RNG.normal(size=(12, 2, 3, 4, 5)).astype(np.float16)), kind="array")
    assert free.about.shape == (2, 3, 4, 5)
    assert free.train.inputs.dtype == np.float32


def test_nodes_by_name_or_number() -> None:
    x = np.zeros((12, 2, 2), np.uint8)
    numbers = {"node_train": np.arange(12) % 4, "node_test": np.arange(6) % 4}
    assert read(arrays(x, **numbers)).nodes[0].tolist() == [str(i % 4) for i in range(12)]
    named = read(arrays(x, **numbers, node_names=np.array([b"a", b"b", b"c", b"d"])))
    assert named.nodes[1].tolist() == list("abcdab")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (arrays(RNG.random((12, 3))), "x_train in s is float64, 12 x 3; .* set data.kind, or add an array kind: im"),
        (arrays(RNG.random((12, 3, 4))), "x_train in s is float64, 12 x 3 x 4; .* set data.kind"),
        (arrays(RNG.random((12, 3)), kind=np.array("rows")), r"kind in s is \['rows'\]; valid: image, table, series"),
        (arrays(np.array(["a"] * 12)), "x_train in s is <U1, 12; it must be uint8"),
        (arrays(np.array(["a"] * 12), kind=np.array("table")), "x_train in s is <U1, 12; it must be numbers"),
        (arrays(np.zeros((12, 3, 3), np.int64), kind=np.array("image")), "int64, 12 x 3 x 3; images are uint8"),
        (arrays(np.zeros((12, 3), np.uint8), kind=np.array("image")), "uint8, 12 x 3; images are"),
        ({**arrays(np.zeros((12, 3, 3), np.uint8)), "x_test": np.zeros((6, 3, 3), np.uint16)}, "uint8 and uint16"),
        (arrays(np.full((12, 3, 3), np.nan), kind=np.array("image")), r"images: 108 .*\[0, 0, 0, 0\], \[0, 0, 0, 1\]"),
        (arrays(np.full((12, 3), np.inf), kind=np.array("table")), "train rows: 36 values are not finite or beyond 1e"),
        (arrays(np.full((12, 3), np.nan), kind=np.array("array")), "train arrays: 36 values are not finite"),
        (arrays(np.ones((12, 3)), kind=np.array("table"), columns=np.array(["a", "a", "b"])), "2 different names"),
        ({**arrays(np.ones((12, 3)), kind=np.array("table")), "x_test": np.ones((6, 2))}, "x_test in s is .*6 x 2"),
        ({**arrays(np.ones((12, 3)), kind=np.array("array")), "x_test": np.ones((6, 2))}, r"shape \(2,\); .* \(3,\)"),
        (arrays(np.ones((12, 3, 3, 3)), kind=np.array("series")), "series are numbers, N x channels x T"),
        (series(length_train=np.array([5, 0] * 6)), "6 values that are not 1 to 5, the first at 1, 3, 5"),
        (series(length_train=np.array([5, 9] * 6)), "6 values that are not 1 to 5"),
        (series(length_train=np.array([5, 2.5] * 6)), "must have a whole number for each series"),
        (series(length_train=np.array([5] * 6)), "must have a whole number for each series"),
        (series(x_train=np.full((12, 2, 5), np.nan)), "12 series of x_train in s have no steps, the first at 0, 1, 2"),
        (series(x_test=np.ones((6, 3, 5))), "have 2 and 3 channels"),
        (series(channels=np.array(["a"])), "channels in s has 1 different names; x_train has 2 channels"),
        (series(x_train=np.full((12, 2, 5), np.inf)), "train series: .* values are not finite"),
        (series(node_train=LABELS), "node_test in s is missing; it must have a node for each of 6 samples"),
        (series(node_train=LABELS[:4], node_test=LABELS[:6]), "node_train in s is int64, 4; it must have a node"),
        (series(node_train=LABELS, node_test=LABELS[:6], node_names=np.array(["a"])), "has 0 to 2; node_names has 1"),
        (series(y_train=LABELS * 1.5), "y_train in s must have one whole number or name .* it is float64, 12"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused_by_name(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"length": 4},
            "data.length = 4: 6 series of x_train in s have more steps, the first at 0, 2, 4; set data.lon",
        ),
        ({"kind": "tokens"}, "ids of tokens are whole numbers"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(series(), **options)
    with pytest.raises(InputError, match="data.kind = 'table', but kind in s is 'series'; remove data.kind"):
        read(series(kind=np.array("series")), kind="table")


def folder_of(path: Path, given: dict[str, Any]) -> Path:
    path.mkdir()
    for name, array in given.items():
        np.save(path / f"{name}.npy", array)
    return path


def is_mapped(array: np.ndarray) -> bool:
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def test_a_folder_of_arrays_stays_in_its_files(tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (40, 4, 5, 3)).astype(np.uint8)
    path = folder_of(tmp_path / "set", {**arrays(images), "classes": np.array(list("abc"))})
    config = DataConfig(file=str(path), partition={"scheme": "iid", "clients": 2})
    data = federate(config, 0)
    assert is_mapped(data.train.inputs)
    assert is_mapped(data.test.inputs)
    np.savez(tmp_path / "set.npz", **arrays(images), classes=np.array(list("abc")))
    same = federate(DataConfig(file=str(tmp_path / "set.npz"), partition={"scheme": "iid", "clients": 2}), 0)
    assert data.fingerprint == same.fingerprint
    assert data.images_fingerprint == same.images_fingerprint
    assert data.codec.hash == same.codec.hash
    assert np.array_equal(data.train_of(1).inputs, same.train_of(1).inputs)
    assert np.array_equal(pickle.loads(pickle.dumps(data)).train.inputs, same.train.inputs)


def test_folders_that_are_no_set_are_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "set", arrays(np.zeros((12, 3, 3), np.uint8), x_test=None))
    with pytest.raises(InputError, match="lacks x_test; it needs"):
        from_file(path, SetsConfig())
    (path / "x_test.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="x_test.npy is not a NumPy file of a plain array"):
        from_file(path, SetsConfig())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has neither Parquet files, nor x_train.npy, .*; it has nothing"):
        from_file(tmp_path / "empty", SetsConfig())
    with pytest.raises(InputError, match="there is no file"):
        from_file(tmp_path / "none.csv", SetsConfig())
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(InputError, match="valid are files that end in .csv, .tsv, .parquet or .npz, and folders"):
        from_file(tmp_path / "a.xlsx", SetsConfig())


@pytest.mark.skipif(not SETS.is_dir(), reason="the real sets are not beside the project")
def test_real_sets_need_nothing_but_the_config(tmp_path: Path) -> None:
    vowels = from_file(SETS / "japanese_vowels.npz", SetsConfig())
    assert vowels.train.inputs.shape == (270, 12, 29)
    assert vowels.test.inputs.shape == (370, 12, 29)
    lengths = (~np.isnan(vowels.train.inputs[:, 0])).sum(1)
    assert (lengths.min(), lengths.max()) == (7, 26)
    spoken = from_file(SETS / "spoken_digits.npz", SetsConfig())
    assert spoken.about.shape == (20, 80)
    assert np.unique(spoken.nodes[0], return_counts=True)[1].tolist() == [450] * 6
    assert set(spoken.nodes[0]) == {"george", "jackson", "lucas", "nicolas", "theo", "yweweler"}
    assert from_file(SETS / "basic_motions.npz", SetsConfig(kind="series")).about.shape == (6, 100)
    land = load("npz:landsat.npz", SETS, download=False, size=None, channels=None)
    assert np.bincount(land.test.labels).tolist() == [461, 224, 397, 211, 237, 470]
    data = federate(DataConfig(file=str(SETS / "landsat.npz"), partition={"scheme": "iid", "clients": 2}), 0)
    assert data.codec.mean * 255 == pytest.approx([69.1280, 83.4505, 99.1889, 82.5664], abs=5e-5)
    assert data.codec.deviation * 255 == pytest.approx([13.5562, 22.7904, 16.6893, 18.8363], abs=5e-5)
    with np.load(SETS / "usps.npz") as usps:
        floats = {f"x_{part}": usps[f"x_{part}_milli"] / 1000 for part in ("train", "test")}
        np.savez(tmp_path / "usps.npz", **floats, y_train=usps["y_train"], y_test=usps["y_test"])
    data = from_file(tmp_path / "usps.npz", SetsConfig(kind="image"))
    assert data.about.largest is None
    assert data.train.inputs.min() == -1
    with np.load(SETS / "landsat.npz") as land16:
        more = {f"x_{part}": land16[f"x_{part}"].astype(np.uint16) * 256 for part in ("train", "test")}
        np.savez(tmp_path / "wide.npz", **more, y_train=land16["y_train"], y_test=land16["y_test"])
    config = DataConfig(file=str(tmp_path / "wide.npz"), partition={"scheme": "iid", "clients": 2})
    assert federate(config, 0).codec.mean * 65535 / 256 == pytest.approx([69.1280, 83.4505, 99.1889, 82.5664], abs=5e-5)

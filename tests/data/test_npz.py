"""Arrays of one's own in a NumPy file, and wrong ones."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedkd.data.datasets import load
from fedkd.data.npz import from_npz
from fedkd.errors import InputError

RNG = np.random.default_rng(0)


def write_npz(path: Path, **changes: object) -> None:
    arrays = {
        "x_train": RNG.integers(0, 256, (30, 6, 6)).astype(np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": RNG.integers(0, 256, (9, 6, 6)).astype(np.uint8),
        "y_test": np.arange(9) % 3,
    }
    arrays.update(changes)  # type: ignore[arg-type]
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def read(name: str, root: Path, size: int | None = None, channels: int | None = None) -> object:
    return load(name, root, download=False, size=size, channels=channels)


def test_arrays_of_ones_own(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine.npz", classes=np.array(["cat", "dog", "cow"]))
    data = read("npz:mine.npz", tmp_path)
    assert data.classes == ("cat", "dog", "cow")
    assert data.train.inputs.shape == (30, 1, 6, 6)
    assert read("mine", tmp_path).classes == data.classes  # any <root>/<name>.npz is a named set
    assert read("mine", tmp_path, size=12, channels=3).train.inputs.shape == (30, 3, 12, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks x_test"),
        ({"x_train": np.zeros((30, 6, 6), np.float32)}, "x_train .* is float32"),
        ({"x_train": np.zeros((30, 6, 6, 4), np.uint8)}, "4x6x6 and 1x6x6 .*; set data.channels"),
        ({"x_train": np.zeros((30, 3, 32, 32), np.uint8)}, "30 x 3 x 32 x 32, which looks like N x C x H x W"),
        ({"y_train": np.zeros(29, np.int64)}, "y_train .* one whole number or name for each image"),
        ({"y_train": np.zeros(30)}, "y_train .* one whole number"),
        ({"y_test": np.full(9, -1)}, "label -1; labels count from 0"),
        ({"classes": np.array(["cat"])}, "names 1 classes, but has the label 2"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(InputError, match=message):
        read("npz:mine.npz", tmp_path)


def test_classes_of_test_samples_only(tmp_path: Path) -> None:
    """Names are refused, unless the set names its classes; of numbers the set may have more than its samples."""
    names = {"y_train": np.array(["cat", "dog"] * 15), "y_test": np.array(["cat", "dog", "cow"] * 3)}
    write_npz(tmp_path / "mine.npz", **names)
    with pytest.raises(InputError, match="1 classes in its test samples only: cow; .* in an array `classes`"):
        read("npz:mine.npz", tmp_path)
    write_npz(tmp_path / "mine.npz", **names, classes=np.array(["cat", "cow", "dog"]))
    assert read("npz:mine.npz", tmp_path).notes == ()  # type: ignore[attr-defined]
    write_npz(tmp_path / "mine.npz", y_train=np.array([5, 6] * 15), y_test=np.array([5, 6, 6] * 3))
    found = read("npz:mine.npz", tmp_path).notes  # type: ignore[attr-defined]
    assert found == ("5 of 7 classes have no training sample: 0, 1, 2, 3, 4",)


def test_names_as_bytes_and_as_labels(tmp_path: Path) -> None:
    write_npz(tmp_path / "mine.npz", classes=np.array([b"cat", b"dog", "été".encode()]))
    assert read("npz:mine.npz", tmp_path).classes == ("cat", "dog", "été")
    for kind in (str, bytes):
        train = np.array([["dog", "cat", "cow"][i % 3] for i in range(30)]).astype("S" if kind is bytes else "U")
        test = np.array([["cow", "dog", "cat"][i % 3] for i in range(9)])
        write_npz(tmp_path / "mine.npz", y_train=train, y_test=test)
        data = read("npz:mine.npz", tmp_path)
        assert data.classes == ("cat", "cow", "dog")
        assert data.train.labels[:4].tolist() == [2, 0, 1, 2]
        assert data.test.labels[:3].tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.zeros((9, 8, 8), np.uint8)}, "1x6x6 and 1x8x8 .*; set data.size"),
        ({"x_test": np.zeros((9, 6, 6, 3), np.uint8)}, "1x6x6 and 3x6x6 .*; set data.channels"),
        ({"x_train": np.zeros((30, 0, 6), np.uint8)}, "train images are uint8, .*; a sample needs values"),
        ({"y_train": np.full(30, 10**12)}, "label 1000000000000, and only 39 images"),
        ({"y_train": np.full(30, 2**64 - 1, np.uint64)}, "label 18446744073709551615"),
        ({"classes": np.array(["a", "b", "a"])}, "'a' twice"),
        ({"classes": np.array([b"\xff", b"a", b"b"])}, "not UTF-8"),
        ({"classes": np.array([["a", "b", "c"]])}, "must be a list of names"),
        ({"y_test": np.array(["0"] * 9)}, "both have numbers, or both names"),
        ({"y_train": np.array(["a"] * 30), "y_test": np.array(["b"] * 9), "classes": np.array(["a"])}, "label 'b'"),
    ],
)
def test_more_wrong_arrays_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_npz(tmp_path / "mine.npz", **changes)
    with pytest.raises(InputError, match=message):
        read("npz:mine.npz", tmp_path)


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    write_npz(tmp_path / "whole.npz", notes=np.array([{"an": "object"}], dtype=object))
    whole = (tmp_path / "whole.npz").read_bytes()
    assert read("npz:whole.npz", tmp_path).classes == ("0", "1", "2")  # other arrays are not read
    np.save(tmp_path / "one.npy", np.zeros(3))
    damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>", "flipped": bytearray(whole)}
    damaged["flipped"][600:700] = bytes(100)
    for name, content in damaged.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.npz is not a NumPy archive of plain arrays, or is damaged: "):
            read(f"npz:{name}.npz", tmp_path)
    with pytest.raises(InputError, match="it is one array"):
        read("npz:one.npy", tmp_path)


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (300 << 20, 1, 1)}
        )
        with archive.open("x_train.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(300):
                member.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"0\.3 MB would become 0\.3 GB, more than images do"):
        read("npz:bomb.npz", tmp_path)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 10 << 20


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (2**62, 4), (-1, 8), (12, 8, 9), (11, 8, 8)])
def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + bytes(12 * 64))
    with pytest.raises(InputError, match="x_train claims to be uint8, .* which its size does not fit"):
        read("npz:s.npz", tmp_path)


def test_a_pipe_in_place_of_an_archive_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.npz")
    with pytest.raises(InputError, match="s.npz is not .*: it is not a regular file"):
        read("npz:s.npz", tmp_path)


def test_values_of_no_bytes_are_refused_however_many_are_claimed(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4), np.uint8), np.array([0, 1])
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "s.npz", **arrays)  # type: ignore[arg-type]
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|S0", "fortran_order": False, "shape": (10**18,)})
    with zipfile.ZipFile(tmp_path / "s.npz", "a") as archive:
        archive.writestr("classes.npy", header.getvalue())
    with pytest.raises(InputError, match="classes has values of no bytes, of which a file can claim any number"):
        from_npz(tmp_path / "s.npz")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_name_of_numbers_that_are_no_letters_is_refused(tmp_path: Path, order: str) -> None:
    """Found by fuzzing: Python's text of such a name raises SystemError."""
    names = np.array([[97, 98], [99, 0x110000], [100, 101]], f"{order}u4").view(f"{order}U2")[:, 0]
    write_npz(tmp_path / "odd.npz", classes=names)
    with pytest.raises(InputError, match=r"classes in .*odd\.npz has a name with 1114112, which is no letter"):
        from_npz(tmp_path / "odd.npz")

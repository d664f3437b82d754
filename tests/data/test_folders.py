"""Folders of images as people have them: one for each class, split or not, with hidden and deeper folders."""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.datasets import load
from fedkd.data.samples import Dataset
from fedkd.errors import InputError


def read(name: str, root: Path, size: int | None = None) -> Dataset:
    return load(name, root, download=False, size=size, channels=None)


def draw(folder: Path, count: int = 5, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), shade + i, np.uint8)).save(folder / f"{i}.png")


def test_folders_of_images(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("left", "right")):
            draw(tmp_path / "xrays" / part / name, count, 40 * label)
    data = read("images:xrays", tmp_path)
    assert data.classes == ("left", "right")
    assert data.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 40, 41, 42, 43, 44]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    unsplit = read("images:xrays/train", tmp_path)
    assert unsplit.test.inputs[:, 0, 0, 0].tolist() == [4, 44]
    assert len(unsplit.train.labels) == 8


@pytest.mark.parametrize(
    ("folders", "counts"),
    [
        ("train/a train/b val/a val/b", (10, 10)),
        ("Train/a Train/b Validation/a Validation/b", (10, 10)),
        ("training/a training/b testing/a testing/b", (10, 10)),
        ("train/a train/b test/a test/b val/a val/b", (10, 10)),
        ("train/a train/b", (8, 2)),
        ("a b", (8, 2)),
        ("a/day a/night b/day/left b/night", (16, 4)),
        ("train/a train/b test/a test/b .ipynb_checkpoints train/.thumbs/x __MACOSX/a train/a/.cache", (10, 10)),
    ],
)
def test_layouts_that_people_have(tmp_path: Path, folders: str, counts: tuple[int, int]) -> None:
    for name in folders.split():
        draw(tmp_path / "set" / name)
    data = read("images:set", tmp_path)
    assert data.classes == ("a", "b")
    assert (len(data.train.labels), len(data.test.labels)) == counts


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("test/a test/b", "has no `train` folder; expected: .* Found: the folders test"),
        ("a/train a/test b/train b/test", r"a folder a/test; expected: .*: test/a"),
        ("mine/train/a mine/train/b mine/test/a", r"folder mine/test; .* Perhaps you mean the folder .*mine"),
        ("train/a Train/b test/a", "has both Train and train"),
        ("", "has no images in class folders; .* Found: nothing"),
    ],
)
def test_layouts_with_another_meaning_are_refused(tmp_path: Path, folders: str, message: str) -> None:
    (tmp_path / "set").mkdir()
    for name in folders.split():
        draw(tmp_path / "set" / name)
    with pytest.raises(InputError, match=message):
        read("images:set", tmp_path)


def test_classes_of_one_part_go_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/b", "train/d", "test/a", "test/b"):
        draw(tmp_path / "set" / name, 3)
    (tmp_path / "set" / "test" / "d").mkdir()
    with caplog.at_level(logging.WARNING, "fedkd"):
        data = read("images:set", tmp_path)
    assert data.classes == ("a", "b", "d")
    assert np.bincount(data.train.labels, minlength=3).tolist() == [0, 3, 3]
    assert np.bincount(data.test.labels, minlength=3).tolist() == [3, 3, 0]
    assert "train has no images of the classes in test/a" in caplog.text
    assert "test has no images of the classes in train/d" in caplog.text


def test_one_name_in_two_ways_of_writing_accents_is_one_class(tmp_path: Path) -> None:
    for part, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("été", "hiver"):
            draw(tmp_path / "set" / part / unicodedata.normalize(form, name))
    data = read("images:set", tmp_path)
    assert data.classes == ("hiver", unicodedata.normalize("NFC", "été"))
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5


def test_an_empty_class_and_bad_images_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "set" / "a")
    (tmp_path / "set" / "b").mkdir()
    with pytest.raises(InputError, match="b has no images; remove the folder"):
        read("images:set", tmp_path)
    draw(tmp_path / "set" / "b", 8)
    for i in (2, 5, 6):
        (tmp_path / "set" / "b" / f"{i}.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"b/2.png: cannot identify .* Another 2 images"):
        read("images:set", tmp_path)


def test_files_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        draw(tmp_path / "set" / name)
        (tmp_path / "set" / name / "scan.dcm").write_bytes(b"x")
        (tmp_path / "set" / name / "._0.png").write_bytes(b"x")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set" / "a")
    with caplog.at_level(logging.WARNING, "fedkd"):
        data = read("images:set", tmp_path)
    assert len(data.train.labels) == 8
    assert "not read, by their endings: 2 .dcm" in caplog.text


@pytest.mark.parametrize(
    "folders", ["train/a train/b unlabeled", "seg_train/a seg_train/b seg_test/a", "training_set/a test_set/a"]
)
def test_a_part_is_no_class(tmp_path: Path, folders: str) -> None:
    for name in folders.split():
        draw(tmp_path / "set" / name)
    with pytest.raises(InputError, match="with folders in it, which is no class"):
        read("images:set", tmp_path)


def test_a_class_of_trains_is_a_class(tmp_path: Path) -> None:
    for name in ("train", "car"):
        draw(tmp_path / "set" / name)
    assert read("images:set", tmp_path).classes == ("car", "train")


@pytest.mark.parametrize(("link", "to"), [("a/up", ".."), ("c", "a")])
def test_links_do_not_give_an_image_two_classes(tmp_path: Path, link: str, to: str) -> None:
    for name in ("a", "b"):
        draw(tmp_path / "set" / name)
    (tmp_path / "set" / link).symlink_to(to)
    with pytest.raises(InputError, match="is read as .* and, through a link, as"):
        read("images:set", tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "a/deep", "b"):
        draw(tmp_path / "set" / name)
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="deep cannot be read: Permission denied"):
        read("images:set", tmp_path)

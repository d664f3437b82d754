"""Reading what anyone may have written: regular files, bounded, in their folder; and writing whole, or not at all."""

from __future__ import annotations

import csv
import io
import math
import os
import socket
from pathlib import Path

import pytest

from fedkd.files import NotWritten, append, as_csv, as_json, parse_json, put_new, read, write


def test_what_is_no_regular_file_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name in ("pipe", "zero", "folder", "socket"):
            with pytest.raises(ValueError, match="not a regular file"):
                read(tmp_path / name, 10)


def test_a_file_is_bounded_also_where_it_is_sparse(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 10)
    assert read(tmp_path / "small", 10) == b"x" * 10
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(ValueError, match="larger than 0 MB"):
        read(tmp_path / "sparse", 10)


def test_no_link_leads_out_and_links_within_are_followed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "private").write_text("secret")
    (home / "own").write_text("mine")
    (home / "within").symlink_to("own")
    (home / "out").symlink_to("../private")
    (home / "folder").symlink_to("..")
    (home / "loop").symlink_to("loop")
    assert read(home / "within", 10, home) == b"mine"
    for path in (home / "out", home / "folder/private"):
        with pytest.raises(ValueError, match="a link to a place outside of"):
            read(path, 10, home)
    with pytest.raises(OSError, match="[Ll]oop|symbolic"):
        read(home / "loop", 10, home)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested too deeply"),
        ("1" * 5000, "number|digits"),
        (str(2**64), "too large"),
        (str(-(2**63) - 1), "too large"),
        ('["\\ud800"]', "surrogates"),
        (b"\xff", "utf-8"),
        ("{", "."),
    ],
)
def test_json_that_nobody_can_work_with_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_json_with_what_only_looks_odd_is_read() -> None:
    assert parse_json('["' + "[" * 100 + '", -9223372036854775808, "\\ud83d\\ude00"]') == ["[" * 100, -(2**63), "😀"]


def test_a_file_is_written_whole_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("secret")
    (tmp_path / ".new.partial").symlink_to("private")
    (tmp_path / "new").symlink_to("private")
    write(tmp_path / "new", b"mine")
    assert ((tmp_path / "new").read_text(), (tmp_path / "private").read_text()) == ("mine", "secret")
    (tmp_path / "again").symlink_to("private")
    put_new(tmp_path / "again", b"mine")
    assert (tmp_path / "private").read_text() == "secret"
    with pytest.raises(NotWritten, match="the file was removed during the run"):
        append(tmp_path / "gone", b"x")


def test_what_is_not_finite_is_null() -> None:
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": math.nan, "d": 2}, "e": "NaN"}
    written = as_json(value)
    assert written == b'{"a": [1.5, null, [null, null]], "b": {"c": null, "d": 2}, "e": "NaN"}\n'
    assert as_json({"a": 1.0}) == b'{"a": 1.0}\n'


def test_a_table_has_numbers_in_full_and_no_formulas() -> None:
    text = as_csv(["name", "value"], [["=SUM(A1)", 0.1], ["a, b", math.nan], ["x", None], ["y", -2]])
    assert list(csv.reader(io.StringIO(text))) == [
        ["name", "value"], ["'=SUM(A1)", "0.1"], ["a, b", ""], ["x", ""], ["y", "-2"],
    ]  # fmt: skip

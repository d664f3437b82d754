"""Files with one thing wrong: each is refused with exit code 2 in a few lines that name the key or the file."""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fedkd.cli import app

RUNNER = CliRunner()
MOST_LINES = 15

WHOLE: dict[str, Any] = {  # a valid run file with a value for each key
    "seed": 0, "rounds": 2, "cohort": 3, "min_replies": 1, "timeout": 9.5, "payload_limit": 10**8,
    "payload_limits": {"weights": 10**7},
    "data": {
        "name": "digits", "root": "data", "download": False, "size": 8, "channels": 1, "mean": [0.5],
        "deviation": [0.5], "train_per_class": 20, "test_per_class": 10, "node_test": 20, "augment": "none",
        "partition": {"scheme": "dirichlet", "clients": 3, "alpha": 0.5, "minimum": 1, "seed": 0},
        "public": {"size": 20, "labelled": True, "balanced": True}, "validation": {"size": 10},
    },
    "model": {"name": "mlp", "hidden": [8]},
    "train": {
        "epochs": 1, "steps": 2, "batch_size": 8, "lr_decay": 0.9, "clip": 5.0,
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5, "weight_decay": 0.001},
    },
    "strategy": {"name": "fedprox", "mu": 0.1},
    "engine": {"name": "inline", "threads": 1, "device": "cpu"},
    "evaluate": {"every": 1, "fraction": 1.0}, "checkpoint": {"every": 1, "keep": 1},
    "faults": {"dropout": 0.1, "straggler": 0.1, "delay": 1.0, "error": 0.1, "corrupted": 0.1, "lost": 0.1},
}  # fmt: skip
REQUIRED = ("data", "model", "strategy", "data.name", "data.partition", "data.partition.scheme", "data.public.size",
            "data.validation.size", "train.optimizer.name", "train.optimizer.lr", "strategy.name", "engine.name",
            "data.partition.clients", "data.partition.alpha")  # fmt: skip


def keys_of(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{name}.")


KEYS = list(keys_of(WHOLE))
OTHERS: dict[type, list[Any]] = {  # values that no key of a type can have
    bool: ["yes", 1, 0.5, [True]],
    int: ["three", 1.5, [1], {"a": 1}, -(2**40), 2**63, 10**30, True, float("nan"), float("inf")],
    float: ["much", [0.5], {"a": 1}, float("inf"), -float("inf"), float("nan"), -3.0, True],
    str: [5, 0.5, [], ["a"], True, "a\x00b", "\x1b[2J", "x" * 5000,
          "x" * 300, "no such thing", "~nobody/x.py:y", "[bold]", "a:b.c"],
    list: [5, "text", [[]], ["x"], {"a": 1}],
    dict: [5, 1.5, [], ["x"], True, "\x01"],
}  # fmt: skip


def mutated(key: str, value: Any) -> dict[str, Any]:
    table = copy.deepcopy(WHOLE)
    *path, last = key.split(".")
    inner = table
    for part in path:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return table


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return the key whose name the refusal must have, and the content of the run file."""
    kind = draw(st.sampled_from(["value", "value", "value", "unknown", "missing", "bytes"]))
    key = draw(st.sampled_from(KEYS))
    if kind == "missing":
        key = draw(st.sampled_from(REQUIRED))
        return key, tomli_w.dumps(mutated(key, ...)).encode()
    if kind == "unknown":
        tables = [k for k in KEYS if isinstance(_value(k), dict) and k != "payload_limits"]
        table = draw(st.sampled_from(["", *(f"{t}." for t in tables)]))
        name = draw(st.text("abcxyz_é-", min_size=1, max_size=40).map(lambda text: f"q{text}"))
        return name, tomli_w.dumps(mutated(table + name, draw(st.sampled_from([1, "x", [], {}])))).encode()
    if kind == "bytes":
        content = tomli_w.dumps(WHOLE).encode()
        place = draw(st.integers(0, len(content) - 1))
        junk = draw(
            st.sampled_from([b"\xff\xfe", b"\x00", b"\xc3\x28", b"[[[", b'"""', b"= =", b"[" * 5000, b"\x1b[2J"])
        )
        return "", content[:place] + junk + content[place:]
    others = OTHERS[type(_value(key))]
    if key == "data.root":  # digits are in no folder: any path does
        others = others[:8]
    value = draw(st.sampled_from(others))
    return key, tomli_w.dumps(mutated(key, value)).encode()


def _value(key: str) -> Any:
    found: Any = WHOLE
    for part in key.split("."):
        found = found[part]
    return found


def refused(content: bytes, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_bytes(content)
        before = os.getcwd()
        os.chdir(folder)
        try:
            result = RUNNER.invoke(app, ["run", str(path), "--out", str(Path(folder) / "out")])
        finally:
            os.chdir(before)
        assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
        assert not (Path(folder) / "out").exists()
        check_message(result.output, key)


def check_message(text: str, key: str) -> None:
    assert "Traceback" not in text
    assert len(text.splitlines()) <= MOST_LINES, text
    assert len(text) < 4000, text
    assert key.rsplit(".", 1)[-1] in text, text
    assert all(c.isprintable() or c == "\n" for c in text), text


def run_files(count: int) -> Any:
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def test_the_whole_file_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(WHOLE))
    result = RUNNER.invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), "--set", "rounds=1"])
    assert result.exit_code == 0, result.output


@run_files(60)
@given(mutations())
def test_a_run_file_with_one_thing_wrong(mutation: tuple[str, bytes]) -> None:
    refused(mutation[1], mutation[0])


@pytest.mark.slow
@run_files(1000)
@given(mutations())
def test_a_thousand_run_files_with_one_thing_wrong(mutation: tuple[str, bytes]) -> None:
    refused(mutation[1], mutation[0])


# Sets in files

SET = {
    "x_train": np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8), "y_train": np.arange(12) % 3,
    "x_test": np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8), "y_test": np.arange(6) % 3,
    "classes": np.array(["a", "b", "c"]),
}  # fmt: skip
ARRAYS: list[Any] = [
    None, np.zeros(0), np.array(3), np.zeros((12, 8, 8), np.float32), np.zeros((12, 8), np.uint8),
    np.zeros((12, 8, 8, 2), np.uint8), np.zeros((12, 0, 8), np.uint8), np.zeros((12, 8, 9, 1, 1), np.uint8),
    np.full(12, -1), np.full(12, 2**40), np.full(12, 0.5), np.full(11, 0), np.full((12, 1), 0), np.full(12, "no"),
    np.array([{}] * 12, dtype=object), np.full(12, np.nan), np.full(12, b"\xff"), np.full(12, 1 + 1j),
    np.zeros(12, "datetime64[s]"), np.full(12, True),
]  # fmt: skip


def refused_set(folder: Path, name: str, part: str) -> None:
    config = {
        "rounds": 1, "model": "mlp", "strategy": "fedavg",
        "data": {"name": name, "root": str(folder), "partition": {"scheme": "iid", "clients": 2}},
    }  # fmt: skip
    (folder / "run.toml").write_text(tomli_w.dumps(config))
    result = RUNNER.invoke(app, ["run", str(folder / "run.toml"), "--out", str(folder / "out")])
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    check_message(result.output, part)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Return an archive that is damaged, or has one array that does not fit."""
    arrays = dict(SET)
    damaged = draw(st.booleans())
    if not damaged:
        key = draw(st.sampled_from(["x_train", "y_train", "x_test", "y_test"]))
        wrong = draw(st.sampled_from(ARRAYS))
        arrays[key] = wrong
        if wrong is None:
            del arrays[key]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    if damaged:
        place = draw(st.integers(0, len(content) - 40))
        content = draw(st.sampled_from([content[:place], b"", b"\x00" * 100, b"PK\x03\x04" + content[place:]]))
    return content


@run_files(40)
@given(archives())
def test_an_archive_with_one_thing_wrong(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "s.npz").write_bytes(content)
        refused_set(Path(folder), "npz:s.npz", "s.npz")


def _png(mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "TIFF" if mode in ("F", "I") else "PNG")
    return buffer.getvalue()


FILES: dict[str, bytes] = {
    "cut.png": _png()[:40], "empty.png": b"", "text.jpg": b"<html>", "float.tif": _png("F"),
    "wide.png": _png(size=(9, 8)), "junk.gif": b"GIF89a" + bytes(5), "bomb.bmp": b"BM" + b"\xff" * 60,
    "int.tiff": _png("I"), "zip.webp": b"PK\x03\x04",
}  # fmt: skip


@run_files(40)
@given(st.sampled_from(sorted(FILES)), st.sampled_from(["a", "b", "train/a", "test/b"]), st.integers(0, 3))
def test_a_folder_of_images_with_one_thing_wrong(name: str, place: str, depth: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "set"
        for part in ("train/", "test/") if "/" in place else ("",):
            for label in "ab":
                (home / f"{part}{label}").mkdir(parents=True)
                for i in range(5):
                    (home / f"{part}{label}" / f"{i}.png").write_bytes(_png())
        deep = home / place / Path(*["more"] * depth)
        deep.mkdir(parents=True, exist_ok=True)
        (deep / name).write_bytes(FILES[name])
        refused_set(Path(folder), "images:set", name)

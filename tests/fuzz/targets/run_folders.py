"""Run folders that anyone may have written: read by compare and report, and gone on with as far as the first round."""

from __future__ import annotations

import functools
import html
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tomli_w
from helpers import TINY
from helpers.runs_by_hand import a_line
from hypothesis import strategies as st
from matplotlib.axes import Axes
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fedkd.config import parse_config, to_table
from fedkd.reports import charts
from fedkd.reports.compare import compare, split
from fedkd.reports.report import render
from fedkd.reports.tables import to_csv, to_latex, to_markdown
from fedkd.runs.results import completed, find_runs
from fedkd.runs.run_folder import RunFolder, refuse_odd_files
from fuzz.frame import check_message, new_folder, only_refusals
from fuzz.mutations import ODD_OF_TOML, damaged, with_odd_values

LOG = {
    "nodes": [0, 1], "weights": [[0.5, 0.5], [0.1, 0.9]], "teachers": [0, 1], "ensemble_weights": [[0.5, 0.5]] * 3,
    "label_distribution": [0.3, 0.3, 0.4], "feature_map": {"points": [[0.1, 0.2], [1.0, 2.0]], "labels": [0, 2]},
}  # fmt: skip
CONFIG = to_table(parse_config(TINY))
LINES = [a_line(n, {"personal/accuracy": 0.5}, {"personal/accuracy": {"0": 0.4, "1": 0.6}}, 10) for n in range(3)]
TABLES: dict[str, Any] = {
    "metrics.jsonl": [*LINES[:2], {**LINES[2], "log": LOG}],
    "summary.json": {"status": "completed", "versions": {"fedkd": "0.1.0"}},
    "partition.json": {"classes": ["a", "b", "c"], "counts": [[1, 2, 3], [4, 5, 6]]},
    "origin.json": {"images": "x", "partition": "y", "files": {"m.py": "z"}, "versions": {"torch": "2"},
                    "changes": [{"from_round": 1, "what": ["x"]}]},
}  # fmt: skip


def written(name: str, value: Any) -> bytes:
    """Return the content of a file of a run."""
    if name == "config.toml":
        return tomli_w.dumps(value).encode("utf-8", "surrogatepass")
    if name == "metrics.jsonl":
        return b"".join(json.dumps(line).encode() + b"\n" for line in (value if isinstance(value, list) else [value]))
    return json.dumps(value).encode()


@functools.cache
def whole() -> Path:
    """Return a whole run folder; it is gone with the process."""
    folder = Path(_HOME.name) / "whole"
    (folder / "figures/seen").mkdir(parents=True)
    for name, value in {**TABLES, "config.toml": CONFIG}.items():
        (folder / name).write_bytes(written(name, value))
    about = PngInfo()
    about.add_itxt("captions", json.dumps(["one", "two"]))
    Image.new("L", (16, 8)).save(folder / "figures/seen/round-000001.png", pnginfo=about)
    return folder


_HOME = tempfile.TemporaryDirectory()


@st.composite
def _tables(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from([*sorted(TABLES), "metrics.jsonl", "metrics.jsonl"]))
    return name, written(name, draw(with_odd_values(TABLES[name])))


@st.composite
def _configs(draw: st.DrawFn) -> tuple[str, bytes]:
    return "config.toml", written("config.toml", draw(with_odd_values(CONFIG, ODD_OF_TOML)))


@st.composite
def _bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from([*sorted(TABLES), "config.toml", "figures/seen/round-000001.png"]))
    return name, draw(damaged((whole() / name).read_bytes()))


def _drawn(size: tuple[float, float], draw: Callable[[Axes], None], title: str, about: str, names: Any) -> str:
    axes = mock.MagicMock()
    axes.plot.return_value = [mock.MagicMock()]
    draw(axes)
    return f"<svg><title>{html.escape(title)}</title><desc>{html.escape(about)}</desc></svg>"


INPUTS = _tables() | _configs() | _bytes()


def target(drawn: tuple[str, bytes]) -> None:
    name, content = drawn
    with new_folder(whole()) as folder:
        (folder / name).write_bytes(content)
        with only_refusals():
            runs, problems = find_runs([folder])
            for problem in problems:
                check_message(problem)
            with mock.patch.object(charts, "_svg", _drawn):  # to draw takes a second
                page, problems = render(runs, problems, "a title")
            page.encode()
            for problem in problems:
                check_message(problem.replace(str(folder), ""))
            for group in split(completed(runs)[0], [], [], accept_changes=True).values():
                for text in (to_markdown, to_latex, to_csv):
                    text([compare(group)]).encode()
        with only_refusals():
            refuse_odd_files(folder)
            RunFolder(folder).rewind(1)
            assert [line["round"] for line in RunFolder(folder).lines()] == [0, 1]

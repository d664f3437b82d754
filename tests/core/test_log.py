"""What `Round.log` keeps, and what it refuses at the line that calls."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd import RunError
from fedkd.config import Config
from fedkd.core.log import drawable, plain_value, undrawable
from fedkd.runs.run import run

Make = Callable[..., Config]

CODE = (
    "from dataclasses import dataclass\nimport numpy as np, torch\nfrom fedkd.strategies.fedavg import FedAvg\n"
    "@dataclass(kw_only=True)\nclass Mine(FedAvg):\n    def run_round(self, federation):\n"
    "        super().run_round(federation)\n        federation.log({name!r}, {value})\n"
)


def logged(tiny: Make, folder: Path, name: str, value: str) -> object:
    file = folder / "mine.py"
    file.write_text(CODE.format(name=name, value=value))
    run(tiny({"strategy": f"{file}:Mine"}), folder / "run")
    return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])["log"][name]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("np.float32(0.5)", 0.5),
        ("np.int64(3)", 3),
        ("np.arange(3)", [0, 1, 2]),
        ("torch.tensor(0.5)", 0.5),
        ("torch.eye(2)", [[1, 0], [0, 1]]),
        ("{'a': [np.float64(1.5), (2, 'x')]}", {"a": [1.5, [2, "x"]]}),
        ("True", True),
    ],
)
def test_numbers_of_all_kinds_are_kept(tiny: Make, tmp_path: Path, value: str, kept: object) -> None:
    assert logged(tiny, tmp_path, "mine", value) == kept


@pytest.mark.parametrize(
    "value", ["float('nan')", "[1, float('inf')]", "torch.tensor(float('nan'))", "{1, 2}", "None", "{1: 2}"]
)
def test_what_cannot_be_kept_is_refused_by_name_and_line(tiny: Make, tmp_path: Path, value: str) -> None:
    with pytest.raises(
        RunError, match=r"mine\.py:8: log\('mine', \.\.\.\): .* cannot be logged; valid are finite numbers"
    ):
        logged(tiny, tmp_path, "mine", value)
    assert '"status": "failed"' in (tmp_path / "run" / "summary.json").read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", "0.5"),
        ("weights", "[[1, 2], [3]]"),
        ("nodes", "3"),
        ("feature_map", "[1]"),
        ("label_distribution", "0.5"),
    ],
)
def test_other_values_under_the_names_of_figures_are_kept_and_not_drawn(
    tiny: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    logged(tiny, tmp_path, name, value)
    assert '"status": "completed"' in (tmp_path / "run" / "summary.json").read_text()
    assert f"log({name!r}, " in caplog.text
    assert f"is not drawn: the figures need {name!r} to be" in caplog.text


def test_a_table_of_weights_without_its_nodes_ends_no_run(tiny: Make, tmp_path: Path) -> None:
    assert logged(tiny, tmp_path, "weights", "[[0.5, 0.5], [0.5, 0.5]]") == [[0.5, 0.5], [0.5, 0.5]]
    assert '"status": "completed"' in (tmp_path / "run" / "summary.json").read_text()


TABLE = [[0.5, 0.5], [1, 0]]
MAP = {"points": [[0.0, 1.5], [2, 3]], "labels": [0, 9999]}


@pytest.mark.parametrize(
    ("name", "value", "drawn"),
    [
        ("weights", TABLE, True),
        ("weights", [[1]], True),
        ("weights", [[1e30, -1e30]], True),
        ("weights", [[1.1e30]], False),
        ("weights", [[-1.1e30]], False),
        ("weights", [["x"]], False),
        ("weights", [[1, 2], [3]], False),
        ("weights", [[1], 2], False),
        ("weights", [[]], False),
        ("weights", [], False),
        ("weights", 3, False),
        ("weights", {"rows": 3}, False),
        ("nodes", [3], True),
        ("nodes", [], False),
        ("nodes", [[3]], False),
        ("label_distribution", [0.5, 0.5], True),
        ("feature_map", MAP, True),
        ("feature_map", {"points": [[0, 1]], "labels": [0]}, True),
        ("feature_map", {**MAP, "labels": [0, 10_000]}, False),
        ("feature_map", {**MAP, "labels": [0, -1]}, False),
        ("feature_map", {**MAP, "labels": [0, 1.0]}, False),
        ("feature_map", {**MAP, "labels": [0]}, False),
        ("feature_map", {**MAP, "labels": [0, 1, 2]}, False),
        ("feature_map", {"points": [[1], [2]], "labels": [0, 1]}, False),
        ("feature_map", {"points": [[1, 2, 3], [1, 2, 3]], "labels": [0, 1]}, False),
        ("feature_map", {"points": [[1, 2, 3, 4], [1, 2, 3, 4]], "labels": [0, 1]}, False),
        ("feature_map", {"points": [[0, 1, 2], [0, 1]], "labels": [0, 1]}, False),
        ("feature_map", {"points": [[0, 1]]}, False),
        ("feature_map", {"labels": [0]}, False),
        ("feature_map", [[0, 1]], False),
    ],
)
def test_a_figure_draws_values_of_its_form_only(name: str, value: Any, drawn: bool) -> None:
    assert drawable({name: value}, name) == drawn
    refused = undrawable({name: value, "mine": "x"})
    assert len(refused) == (0 if drawn or (name, value) == ("weights", {"rows": 3}) else 1)
    assert all(text.startswith(f"log({name!r}, ") for text in refused)


def test_a_dict_is_a_summary_of_weights_and_of_nothing_else() -> None:
    assert undrawable({"weights": {"mean": 1.0}}) == []
    assert len(undrawable({"nodes": {"mean": 1.0}})) == 1


def test_a_table_is_drawn_with_as_many_names_as_columns() -> None:
    for table, columns in (("weights", "nodes"), ("ensemble_weights", "teachers")):
        wide = {table: [[1, 2], [3, 4], [5, 6]]}  # three rows, two columns
        assert drawable({**wide, columns: [7, 8]}, table, columns)
        assert not drawable({**wide, columns: [7, 8, 9]}, table, columns)
        assert not drawable(wide, table, columns)
        assert drawable({**wide, columns: [7]}, table)
    log = {"weights": [[1, 2]], "nodes": [7, 8], "label_distribution": [1.0]}
    assert drawable(log, "weights", "nodes", "label_distribution")
    assert not drawable({**log, "nodes": [7]}, "weights", "nodes", "label_distribution")


@pytest.mark.parametrize(("length", "shown"), [(58, repr("x" * 58)), (59, "'" + "x" * 56 + "...")])
def test_values_are_shown_with_60_signs_at_most(length: int, shown: str) -> None:
    (text,) = undrawable({"nodes": "x" * length})
    assert text == f"log('nodes', {shown}) is not drawn: the figures need 'nodes' to be a list of numbers"


def test_what_json_cannot_store_is_refused_also_inside() -> None:
    for wrong in ({"a": {1: 2}}, [[math.nan]], {"a": None}, {"a": -math.inf}, object()):
        with pytest.raises(RunError, match=r"test_log\.py:\d+: log\('mine', \.\.\.\)"):
            plain_value("mine", wrong)
    assert plain_value("mine", {"a": (True, "x", 1.5)}) == {"a": [True, "x", 1.5]}

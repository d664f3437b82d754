"""What `Round.log` keeps, and what it refuses at the line that calls."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedkd import RunError
from fedkd.config import Config
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

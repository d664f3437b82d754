"""Weight matrices of many nodes are in files of their own, and their summary is in the round's line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Make, lines

from fedkd.reports.report import report
from fedkd.runs.results import read_run
from fedkd.runs.run import resume, run
from fedkd.runs.weight_matrices import last_matrix, summary

CODE = """
from dataclasses import dataclass
import numpy as np
from fedkd.strategies.fedavg import FedAvg


@dataclass(kw_only=True)
class Weighing(FedAvg):
    nodes: int = 3

    def run_round(self, federation):
        super().run_round(federation)
        rows = np.full((self.nodes, self.nodes), 0.4 / (self.nodes - 1))
        np.fill_diagonal(rows, 0.6 + federation.number / 100)
        federation.log("nodes", list(range(self.nodes)))
        federation.log("weights", rows.round(6))
"""


def weighed(tiny: Make, folder: Path, nodes: int) -> tuple[Path, dict[str, Any]]:
    file = folder / "weighing.py"
    file.write_text(CODE)
    config = tiny({"strategy": {"name": f"{file}:Weighing", "nodes": nodes}, "rounds": 5, "checkpoint": {"every": 1}})
    run(config, folder / "run")
    return folder / "run", lines(folder / "run")[-1]["log"]


def test_a_hundred_nodes_are_in_the_line(tiny: Make, tmp_path: Path) -> None:
    path, log = weighed(tiny, tmp_path, 100)
    assert np.array(log["weights"]).shape == (100, 100)
    assert not (path / "logs").exists()
    assert last_matrix(read_run(path).lines, path) is not None


def test_more_nodes_are_in_a_file_and_the_line_has_their_summary(tiny: Make, tmp_path: Path) -> None:
    path, log = weighed(tiny, tmp_path, 101)
    assert log["weights"]["diagonal"] == {"mean": pytest.approx(0.65), "min": 0.65, "max": 0.65}
    assert log["weights"]["off_diagonal"] == {"mean": pytest.approx(0.004), "min": 0.004, "max": 0.004}
    assert len(log["nodes"]) == 101
    assert (path / "metrics.jsonl").stat().st_size < 30_000
    assert (path / "figures/weights.png").is_file()
    files = sorted(file.name for file in (path / "logs/weights").iterdir())
    assert files == ["round-000003.npz", "round-000004.npz", "round-000005.npz"]  # the last ones
    found = last_matrix(read_run(path).lines, path)
    assert found is not None
    number, nodes, weights = found
    assert (number, nodes, weights.shape) == (5, list(range(101)), (101, 101))
    assert weights[0, 0] == pytest.approx(0.65)
    report([path], tmp_path / "report.html")
    assert "Fusion weights" in (tmp_path / "report.html").read_text()
    # without the files, the rest of the run is still shown
    for file in (path / "logs/weights").iterdir():
        file.unlink()
    report([path], tmp_path / "without.html")
    assert "Fusion weights" not in (tmp_path / "without.html").read_text()


def test_a_resumed_run_has_the_same_lines_and_files(tiny: Make, tmp_path: Path) -> None:
    path, _ = weighed(tiny, tmp_path, 101)
    whole, files = lines(path), {file.name: file.read_bytes() for file in (path / "logs/weights").iterdir()}
    for file in (path / "checkpoints/round-000005").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    resume(path)
    assert lines(path) == whole
    assert {file.name: file.read_bytes() for file in (path / "logs/weights").iterdir()} == files


def test_the_summary_has_means_extremes_and_entropy() -> None:
    weights = np.array([[1.0, 0.0], [0.5, 0.5]])
    found = summary(weights)
    assert found == {
        "diagonal": {"mean": 0.75, "min": 0.5, "max": 1.0},
        "off_diagonal": {"mean": 0.25, "min": 0.0, "max": 0.5},
        "mean_entropy": pytest.approx(np.log(2) / 2),
    }
    json.dumps(found)

"""The script for CUDA machines, on a CPU: each row is written, also one that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import HOME


def _rows(out: Path, *words: str) -> list[dict[str, Any]]:
    script = HOME / "benchmarks" / "gpu.py"
    subprocess.run([sys.executable, script, "--tiny", "--out", out, *words], check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_rows_of_each_kind_run_on_a_cpu(tmp_path: Path) -> None:
    """Those that start Ray or Flower take long; one is enough."""
    kinds = [
        "check",
        "steps",
        "paths",
        "mnist-10/g",
        "resnet8/fp",
        "mnist-10/p",
        "mnist-10/i",
        "mnist-10/v",
        "resnet8/v",
        "knfu/v",
        "fedx/v",
        "fedlgd/v",
        "dsa/d",
    ]
    found = _rows(tmp_path / "rows.jsonl", "--device", "cpu", "--minutes", "7", "--only", *kinds)
    assert [row["row"] for row in found if row["status"] == "failed" or row.get("good") is False] == []
    assert {
        "start",
        "check/graphs",
        "check/memory",
        "check/ray",
        "mnist-10/plain",
        "knfu/vectorised",
        "dsa/device",
    } <= {row["row"] for row in found}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rows fail only without a GPU")
def test_a_row_that_fails_is_a_row_and_no_end(tmp_path: Path) -> None:
    found = _rows(tmp_path / "rows.jsonl", "--device", "cuda", "--only", "check/twice", "check/cpu")
    assert [(row["row"], row["status"]) for row in found] == [
        ("start", "failed"), ("check/twice", "failed"), ("check/cpu", "failed"),
    ]  # fmt: skip
    assert "engine.device = 'cuda'" in found[1]["reason"]

"""Folders of runs that are written by hand; the fixture `write` makes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Write = Callable[..., Path]


def a_line(number: int, metrics: dict[str, float], nodes: dict[str, dict[str, float]], up: int) -> dict[str, Any]:
    return {
        "round": number, "phase": "round", "cohort": [0, 1], "metrics": metrics, "spread": {}, "nodes": nodes,
        "bytes": {"up": {"logits": up}, "down": {"weights": 1_000_000}}, "evaluation_bytes": {"up": {}, "down": {}},
        "failures": [{"node": 0}] if number == 2 else [], "events": [], "log": {},
        "seconds": {"round": 2.0, "evaluation": 9.0},
    }  # fmt: skip


def three_seeds(write: Write) -> Path:
    for seed, (low, high) in enumerate([(0.5, 0.6), (0.55, 0.67), (0.6, 0.66)]):
        write(f"fedavg-{seed}", seed, [0.3, low])
        write(f"local-{seed}", seed, [high, high - 0.05], {"strategy": {"name": "local"}})
    return write("fedavg-9", 9, [0.3, 0.9]).parent


def three_seeds_again(found: Any) -> Path:
    return Path(found.rows[0].arm.runs[0].path).parent

"""Strategies that others go over, each with options for a short run."""

from __future__ import annotations

from typing import Any

FLOWER = "flwr.serverapp.strategy:"


SMALL = {"iterations": 3, "batch_size": 20, "noise": 8, "generator_width": 4, "generator_lr": 0.01, "student_lr": 0.05}


BASES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "feddyn": {"alpha": 0.05},
    "scaffold": {},
    "moon": {},
    "fednova": {},
    f"{FLOWER}FedAvgM": {"server_momentum": 0.5},
    f"{FLOWER}FedAdam": {"eta": 0.03},
}

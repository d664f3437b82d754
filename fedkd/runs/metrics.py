"""Makes a line of metrics.jsonl from a round's record, and a run's summary from its lines."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ..config import Config
from ..core.record import Record


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of a metric are better: for losses, errors, and angles between models."""
    return metric.endswith(("/loss", "/mse", "/mae", "_angle"))


def to_line(record: Record) -> dict[str, Any]:
    """Return a round's record as a line of metrics.jsonl, in a fixed order; only `seconds` depends on the clock."""
    return {
        "round": record.number,
        "phase": "round" if record.number else "prepare",
        "cohort": record.cohort,
        "metrics": dict(sorted(record.metrics.items())),
        "spread": {name: _spread(values.values()) for name, values in sorted(record.nodes.items())},
        "nodes": {name: {str(n): values[n] for n in sorted(values)} for name, values in sorted(record.nodes.items())},
        "bytes": _sorted(record.bytes),
        "evaluation_bytes": _sorted(record.evaluation_bytes),
        "failures": record.failures,
        "events": record.events,
        "log": record.log,
        "seconds": record.seconds,
    }


def _spread(values: Iterable[float]) -> dict[str, float]:
    array = np.sort(np.fromiter(values, np.float64))
    return {
        "nodes": len(array),
        "std": float(array.std()),
        "min": float(array[0]),
        "median": float(np.median(array)),
        "max": float(array[-1]),
    }


def _sorted(sizes: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {way: dict(sorted(kinds.items())) for way, kinds in sizes.items()}


def summarise(
    config: Config,
    lines: list[dict[str, Any]],
    *,
    status: str,
    seconds: float,
    origin: dict[str, Any],
    error: str | None = None,
) -> dict[str, Any]:
    """Return the summary of a run: its last and best metrics, time, bytes by direction and kind, failures, versions.

    `seconds`: of all parts of the run. `origin`: what it began with (see `origin`), with accepted changes.
    """
    final: dict[str, float] = {}
    best: dict[str, float] = {}
    sizes: dict[str, dict[str, dict[str, int]]] = {key: {"up": {}, "down": {}} for key in ("bytes", "evaluation_bytes")}
    for line in lines:
        final |= line["metrics"]
        for name, value in line["metrics"].items():
            better = min if lower_is_better(name) else max
            best[name] = better(best[name], value) if name in best else value
        for key, total in sizes.items():
            for way, kinds in line[key].items():
                for kind, size in kinds.items():
                    total[way][kind] = total[way].get(kind, 0) + size
    rounds = [line["seconds"]["round"] for line in lines if line["round"] > 0]
    return {
        "status": status,
        **({"error": error} if error else {}),
        "rounds": max((line["round"] for line in lines), default=0),
        "seed": config.seed,
        "strategy": config.strategy.name,
        "origin": {key: value for key, value in origin.items() if key != "versions"},
        "final": dict(sorted(final.items())),
        "best": dict(sorted(best.items())),
        "seconds": {
            "total": seconds,
            "median_round": float(np.median(rounds)) if rounds else 0.0,
            "evaluation": sum(line["seconds"]["evaluation"] for line in lines),
        },
        **sizes,
        "failures": sum(len(line["failures"]) for line in lines),
        **surroundings(),
    }


def surroundings() -> dict[str, Any]:
    """Return the versions and the hardware of a run."""
    return {"versions": versions(), "hardware": _hardware()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results may depend on."""
    packages = ("fedkd", "flwr", "ray", "torch", "torchvision", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # only the Ray engine and sweeps need Ray
        return "not installed"


def _hardware() -> dict[str, Any]:
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "memory": memory, "gpus": gpus}

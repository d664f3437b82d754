"""How the rows of benchmarks/gpu.py are measured: seconds of a round, memory, busy share, differences of weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu_work import Result


def rounds_of(config: Any, device: str) -> Result:
    """Run a config; return its seconds per round without the first two, its first round, memory, and the busy share."""
    from fedkd.core.round_loop import run_rounds
    from fedkd.core.setup import make_setup
    from fedkd.runs.run import make_engine

    begin, profiler = time.perf_counter(), None
    seconds: list[float] = []
    wall, first = 0.0, 0.0

    def note(record: Any) -> None:
        nonlocal profiler, wall, first
        if record.number == 1:
            first = time.perf_counter() - begin
        if record.number and profiler is None:
            seconds.append(record.seconds["round"])
        if device == "cuda" and record.number == config.rounds - 1:
            profiler = _profiler()
            profiler.__enter__()
        elif profiler is not None:
            profiler.__exit__(None, None, None)
            wall = record.seconds["round"]

    reset_memory(device)
    setup = make_setup(config)
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=note)
    row = summary(seconds) | {"first_round": round(first, 3), **memory(device)}
    if profiler is not None and wall:
        kernels = _busy(profiler)
        row |= {
            "kernel_seconds": kernels,
            "busy": kernels / statistics.median(seconds),
            "busy_profiled": kernels / wall,
        }
    return row | {"cohort": config.cohort or setup.environment.data.clients, "images": str(config.data.name)}


def summary(seconds: list[float]) -> Result:
    """Return the median, the least and the most seconds of the rounds after the second."""
    counted = seconds[2:] or seconds
    return {
        "seconds": statistics.median(counted), "fastest": min(counted), "slowest": max(counted), "rounds": len(counted),
    }  # fmt: skip


def _profiler() -> Any:
    import torch

    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])


def _busy(profiler: Any) -> float:
    """Return the seconds in which at least one kernel ran."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if "CUDA" in str(event.device_type) and "Mem" not in event.name
    )
    total, reached = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def reset_memory(device: str) -> None:
    """Begin to measure the memory of a GPU."""
    if device == "cuda":
        import torch

        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()


def memory(device: str) -> Result:
    """Return the most memory that a GPU has needed since."""
    if device != "cuda":
        return {}
    import torch

    return {"mib": torch.cuda.max_memory_allocated() >> 20, "reserved_mib": torch.cuda.max_memory_reserved() >> 20}


def weights_after(config: Any, events: list[str] | None = None) -> tuple[dict[str, Any], float]:
    """Run a config; return the server's weights at the end, and their accuracy on the test images.

    `events`: gets what happened on the way.
    """
    from fedkd.core.round_loop import run_rounds
    from fedkd.core.setup import make_setup
    from fedkd.runs.run import make_engine

    def note(record: Any) -> None:
        if events is not None:
            events.extend(event["event"] for event in record.events)

    setup = make_setup(config)
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=note)
        weights = setup.strategy.weights
        assert weights is not None
        return weights, setup.environment.score(0, weights, setup.environment.data.test)["accuracy"]


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of two models' weights."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Let convolutions and products keep all bits of float32; by default CUDA rounds the former to TF32."""
    import torch

    cudnn: Any = torch.backends.cudnn
    parts: list[Any] = [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    yield
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value

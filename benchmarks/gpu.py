"""What a CUDA machine proves and measures: checks first, then seconds per round beside the plain loop and others.

    python benchmarks/gpu.py                        # all rows in 8 minutes; images of $FEDKD_DATA, or random ones
    python benchmarks/gpu.py --minutes 3 --only start check
    python benchmarks/gpu.py --device cpu --tiny    # the same rows on a CPU, as small as they can be

Each row runs in a process of its own, the cheapest and most telling ones first. Its result, or why it has none, is one
line of JSON in `benchmarks/results/gpu-CARD.jsonl` before the next row begins. A machine without a network gets fedkd
by `scripts/airgap.sh`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

HERE = Path(__file__).resolve().parent
WORKERS = multiprocessing.get_context("forkserver")  # a process that has imported torch, and has not started CUDA
WORKERS.set_forkserver_preload(["torch", "fedkd.runs.run", "fedkd.simulations.inline", "engine"])
Result = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Where and how large: `device` cuda or cpu; `tiny`: as small as it can be; `sets`: a folder for random images."""

    device: str
    tiny: bool
    sets: Path


# The work


def images_of(name: str, scale: Scale) -> dict[str, Any]:
    """Return `[data]` of the set with this name, or of random images if it is not there, or if the work is tiny."""
    import numpy as np

    root = Path(os.environ.get("FEDKD_DATA", "data"))
    if not scale.tiny and (root / f"{name}.npz").is_file():
        return {"name": name}
    drawn = {"name": f"random-{name}", "root": str(scale.sets)}
    path = scale.sets / f"random-{name}.npz"
    if not path.exists():
        side, channels = ((28, 1) if name == "mnist" else (32, 3)) if not scale.tiny else (12, 1)
        count = 120 if scale.tiny else 60_000
        draw = np.random.default_rng(0)
        parts: dict[str, Any] = {}
        for part, size in (("train", count), ("test", max(100, count // 6))):
            form = (size, side, side, channels) if channels == 3 else (size, side, side)
            parts[f"x_{part}"] = draw.integers(0, 256, form, dtype=np.uint8)
            parts[f"y_{part}"] = np.arange(size) % 10
        np.savez(path, **parts)
    return drawn


def fedavg(work: str, engine: dict[str, Any], scale: Scale, rounds: int = 7) -> Any:
    """Return the config of FedAvg: `mnist-10`, `mnist-100` (nodes per round), `resnet8`, `resnet18` (CIFAR-10)."""
    models: dict[str, Any] = {
        "resnet8": {"name": "resnet8", "norm": "group"},
        "resnet18": {"name": "resnet18_cifar", "norm": "group"},
    }
    mnist = work.startswith("mnist")
    clients, cohort, size = (1000, 100, 60) if work == "mnist-100" else (100, 10, 600 if mnist else 500)
    if scale.tiny:
        clients, cohort, size, rounds = 6, 3, 16, 2
    tables = {
        "data": {
            **images_of("mnist" if mnist else "cifar10", scale),
            "partition": {"scheme": "drawn", "clients": clients, "alpha": 0.5, "size": size},
            "node_test": 1,
        },
        "model": models.get(work, {"name": "lenet5"}),
        "train": {"batch_size": 8 if scale.tiny else 32, "optimizer": {"name": "sgd", "lr": 0.05}},
        "strategy": {"name": "fedavg"},
        "rounds": rounds, "cohort": cohort,
    }  # fmt: skip
    return _config(tables, engine)


def method(name: str, engine: dict[str, Any], scale: Scale) -> Any:
    """Return the config of one of the methods that train in other ways: knfu, fedftg, fedx, fedlgd."""
    from fedkd.config import read_table

    tables: dict[str, Any] = read_table(HERE.parent / "configs" / name / "quick.toml")
    tiny = scale.tiny
    changes: dict[str, dict[str, Any]] = {
        "knfu": {"clients": 20, "size": 200, "model": {"name": "lenet5"}},
        "fedftg": {"clients": 10, "size": 500, "model": {"name": "convnet", "channels": [16, 32, 32], "norm": "batch"}},
        "fedx": {"clients": 5, "size": 320, "model": {"name": "resnet18_cifar"}},
        "fedlgd": {"clients": 5, "size": 500, "model": {"name": "convnet", "channels": [32, 32, 32]}},
    }
    chosen = changes[name]
    clients, size = (3, 24) if tiny else (chosen["clients"], chosen["size"])
    tables["data"] |= images_of("mnist" if name == "knfu" else "cifar10", scale)
    tables["data"]["partition"] = {"scheme": "iid", "clients": clients}
    tables["data"]["train_per_class"] = -(-clients * size // 10)
    if name == "knfu":
        tables["data"]["public"] = {"size": 20 if tiny else 2000}
        tables["data"]["train_per_class"] += tables["data"]["public"]["size"] // 10
    if name == "fedx":
        tables["data"]["validation"] = {"size": 20}
        tables["data"]["train_per_class"] += 2
    if name == "fedlgd":
        tables["strategy"] |= {"show_local": False}
    tables["model"] = {"name": "mlp", "hidden": [8]} if tiny and name == "knfu" else chosen["model"]
    if tiny and name != "knfu":
        tables["model"] = {"name": "convnet", "channels": [8, 8], "norm": "batch" if name == "fedftg" else "instance"}
        tables["strategy"] |= {"fedftg": {"iterations": 1, "generator_width": 4}}.get(name, {})
    tables["train"] = dict(tables["train"]) | {"epochs": 1} if "epochs" in tables["train"] else tables["train"]
    tables.pop("cohort", None)
    return _config(tables | {"rounds": 1 if tiny else 3}, engine)


def _config(tables: dict[str, Any], engine: dict[str, Any]) -> Any:
    from fedkd.config import parse_config

    never = {"every": 10**6}
    return parse_config(tables | {"engine": engine, "evaluate": never, "checkpoint": never})


# How it is measured


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

    _reset_memory(device)
    setup = make_setup(config)
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=note)
    row = _summary(seconds) | {"first_round": round(first, 3), **_memory(device)}
    if profiler is not None and wall:
        kernels = _busy(profiler)
        row |= {
            "kernel_seconds": kernels,
            "busy": kernels / statistics.median(seconds),
            "busy_profiled": kernels / wall,
        }
    return row | {"cohort": config.cohort or setup.environment.data.clients, "images": str(config.data.name)}


def _summary(seconds: list[float]) -> Result:
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


def _reset_memory(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()


def _memory(device: str) -> Result:
    if device != "cuda":
        return {}
    import torch

    return {"mib": torch.cuda.max_memory_allocated() >> 20, "reserved_mib": torch.cuda.max_memory_reserved() >> 20}


def weights_after(config: Any) -> tuple[dict[str, Any], float]:
    """Run a config; return the server's weights at the end, and their accuracy on the test images."""
    from fedkd.core.round_loop import run_rounds
    from fedkd.core.setup import make_setup
    from fedkd.runs.run import make_engine

    setup = make_setup(config)
    with make_engine(setup) as engine:
        run_rounds(setup, engine)
        weights = setup.strategy.weights
        assert weights is not None
        return weights, setup.environment.score(0, weights, setup.environment.data.test)["accuracy"]


def _apart(one: dict[str, Any], other: dict[str, Any]) -> float:
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


# The rows


def inline(scale: Scale, **more: Any) -> dict[str, Any]:
    """Return the engine that trains one client at a time."""
    return {"name": "inline", "device": scale.device, **more}


def quarter(scale: Scale) -> dict[str, Any]:
    """Return the engine of four Ray workers on one GPU."""
    share = 0.25 if scale.device == "cuda" else 0.0
    cpus = 0.25 if scale.tiny else 1.0
    return {"name": "ray", "workers": 4, "gpus_per_worker": share, "cpus_per_worker": cpus, "device": scale.device}


def start(scale: Scale) -> Result:
    """What the machine is, and how long it takes until its first products."""
    import torch

    begin = time.perf_counter()
    row: Result = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    matrix = torch.ones(1024, 1024, device=scale.device)
    for _ in range(10):
        matrix = matrix @ matrix.clamp(max=1e-3)
    float(matrix[0, 0])
    if scale.device == "cuda":
        card, cudnn = torch.cuda.get_device_properties(0), cast(Any, torch.backends.cudnn)
        free, total = torch.cuda.mem_get_info()
        row |= {
            "card": card.name, "cuda": torch.version.cuda, "cudnn": cudnn.version(),
            "driver": _driver(), "multiprocessors": card.multi_processor_count, "free_mib": free >> 20,
            "total_mib": total >> 20, "conv_precision": cudnn.conv.fp32_precision,
            "matmul_precision": torch.backends.cuda.matmul.fp32_precision,
        }  # fmt: skip
    return row | {"first_products": time.perf_counter() - begin}


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"


def check_twice(scale: Scale) -> Result:
    """The same run twice: are the weights the same bytes?"""
    config = fedavg("mnist-10", inline(scale), scale, rounds=2)
    apart = _apart(weights_after(config)[0], weights_after(config)[0])
    return {"apart": apart, "good": apart == 0}


def check_cpu(scale: Scale) -> Result:
    """One round on the device and on the CPU: the same up to rounding, and in accuracy up to half a point."""
    with exact_float32():
        one, accuracy = weights_after(fedavg("mnist-10", inline(scale), scale, rounds=1))
        other, expected = weights_after(fedavg("mnist-10", {"name": "inline", "device": "cpu"}, scale, rounds=1))
    apart, points = _apart(one, other), 100 * abs(accuracy - expected)
    return {"apart": apart, "accuracy_points": points, "good": apart < 1e-2 and points <= 0.5}


def check_ray(scale: Scale) -> Result:
    """Four Ray workers, each with a quarter of the device, against one client at a time."""
    one, _ = weights_after(fedavg("mnist-10", inline(scale), scale, rounds=2))
    other, _ = weights_after(fedavg("mnist-10", quarter(scale), scale, rounds=2))
    apart = _apart(one, other)
    return {"apart": apart, "good": apart <= (0 if scale.device == "cpu" else 1e-2)}


def plain(work: str) -> Callable[[Scale], Result]:
    """A plain loop on the same device."""

    def row(scale: Scale) -> Result:
        from engine import plain_one

        config = fedavg(work, inline(scale), scale)
        _reset_memory(scale.device)
        return _summary(plain_one(config, scale.device)) | _memory(scale.device) | {"cohort": config.cohort}

    return row


def ours(work: str, engine: Callable[[Scale], dict[str, Any]]) -> Callable[[Scale], Result]:
    """FedAvg by one of our engines."""
    return lambda scale: rounds_of(fedavg(work, engine(scale), scale), scale.device)


def flower_simulation(work: str) -> Callable[[Scale], Result]:
    """FedAvg by the same ServerApp and ClientApp under Flower's own simulation."""

    def row(scale: Scale) -> Result:
        from engine import flower

        share = 0.5 if scale.device == "cuda" else 0.0
        return _summary(flower(fedavg(work, inline(scale), scale), share))

    return row


def pfl(scale: Scale) -> Result:
    """FedAvg by pfl in two processes, where it is installed. It trains on the CPU here: see other_frameworks.py."""
    if importlib.util.find_spec("pfl") is None:
        raise Skipped("pfl is not installed")
    from other_frameworks import pfl_two

    return _summary(pfl_two(fedavg("mnist-10", inline(scale), scale)))


def other(name: str, device: str | None = None) -> Callable[[Scale], Result]:
    """One of the other methods, one client at a time; `device`: another than that of the other rows."""

    def row(scale: Scale) -> Result:
        place = device or scale.device
        return rounds_of(method(name, {"name": "inline", "device": place}, scale), place)

    return row


def distil(name: str, cpu: bool = False) -> Callable[[Scale], Result]:
    """200 iterations of a data-set distiller, one image per class of CIFAR-10; 10 on the CPU."""

    def row(scale: Scale) -> Result:
        from fedkd.config import DistillConfig
        from fedkd.runs.distill import Distillation

        iterations = 2 if scale.tiny else 10 if cpu else 200
        model = {"name": "convnet", "channels": [8, 8]} if scale.tiny else {"name": "convnet"}
        tables = {"data": images_of("cifar10", scale), "model": model, "ipc": 1, "distiller": {"name": name}}
        _reset_memory(scale.device if not cpu else "cpu")
        work = Distillation(DistillConfig.model_validate(tables))
        work.iterate(1)
        begin = time.perf_counter()
        for number in range(2, 2 + iterations):
            work.iterate(number)
        taken = time.perf_counter() - begin
        return {"seconds": taken / iterations, "iterations": iterations, "device": str(work.device)}

    return row


class Skipped(Exception):
    """A row that cannot be measured here, and why."""


@cache
def rows() -> dict[str, tuple[float, Callable[[Scale], Result]]]:
    """Return the rows: the most seconds of each, and what it does. A name that ends in `/cpu` runs without the GPU."""
    made: dict[str, tuple[float, Callable[[Scale], Result]]] = {
        "start": (60, start),
        "check/twice": (60, check_twice),
        "check/cpu": (90, check_cpu),
    }
    for work in ("mnist-10", "mnist-100"):
        made |= {f"{work}/plain": (60, plain(work)), f"{work}/inline": (90, ours(work, inline))}
    made |= {"check/ray": (120, check_ray), "mnist-10/ray": (90, ours("mnist-10", quarter))}
    made |= {"mnist-100/ray": (90, ours("mnist-100", quarter))}
    for work in ("resnet8", "resnet18"):
        made |= {f"{work}/plain": (90, plain(work)), f"{work}/inline": (90, ours(work, inline))}
    for name in ("knfu", "fedftg", "fedx", "fedlgd"):
        made |= {f"{name}/inline": (90, other(name))}
    for name in ("dm", "dsa"):
        made |= {f"{name}/device": (60, distil(name))}
    for name in ("knfu", "fedftg", "fedlgd"):
        made |= {f"{name}/cpu": (120, other(name, "cpu"))}
    for name in ("dm", "dsa"):
        made |= {f"{name}/cpu": (60, distil(name, cpu=True))}
    made |= {f"{work}/ray": (90, ours(work, quarter)) for work in ("resnet8", "resnet18")}
    return made | {"mnist-10/flower": (120, flower_simulation("mnist-10")), "mnist-10/pfl": (90, pfl)}


def run_row(name: str, scale: Scale, log: Path, pipe: Connection) -> None:
    """Run one row in this process, and send its result."""
    os.setsid()  # the processes that it starts can be ended with it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    if name.endswith("/cpu") and not name.startswith("check"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        result: Result = {"status": "ok", **rows()[name][1](scale)}
    except Skipped as reason:
        result = {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        trace = traceback.format_exc()[-2000:]
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}", "trace": trace}
    pipe.send(result)


def measure(name: str, scale: Scale, limit: float) -> Result:
    """Run one row in a process of its own; return its result, or why it has none."""
    begin, log = time.perf_counter(), scale.sets / "log"
    mine, theirs = WORKERS.Pipe(duplex=False)
    process = WORKERS.Process(target=run_row, args=(name, scale, log, theirs))
    process.start()
    theirs.close()
    try:
        if mine.poll(limit):
            result: Result = mine.recv()
            process.join(10)
        else:
            result = {"status": "failed", "reason": f"no result within {limit:.0f} s"}
    except EOFError:
        process.join()
        trace = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        result = {"status": "failed", "reason": f"ended with code {process.exitcode}", "trace": trace}
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return result | {"took": round(time.perf_counter() - begin, 1)}


def main() -> None:
    """Run the rows, and write each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as small as it can be, on random images")
    parser.add_argument("--only", nargs="*", default=[""], help="rows that begin with one of these words")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/gpu-CARD.jsonl")
    given = parser.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        scale = Scale(given.device, given.tiny, Path(folder))
        about = measure("start", scale, 120)
        card = re.sub(r"\W+", "-", str(about.get("card", given.device))).strip("-")
        out = given.out or HERE / "results" / f"gpu-{card}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            for name, (limit, _) in rows().items():
                if name != "start" and not name.startswith(tuple(given.only)):
                    continue
                left = ends - time.monotonic()
                if name == "start":
                    result = about | {"command": " ".join(sys.argv), "commit": _commit()}
                elif left < 5:
                    result = {"status": "skipped", "reason": f"the {given.minutes:g} minutes are over"}
                else:
                    result = measure(name, scale, min(limit, left))
                line = json.dumps({"row": name, **result})
                print(line, flush=True)
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())


def _commit() -> str:
    words = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

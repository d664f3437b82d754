"""The rows of benchmarks/gpu.py: what each checks or measures."""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

HERE = Path(__file__).resolve().parent
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


def stacked(scale: Scale, **more: Any) -> dict[str, Any]:
    """Return the engine that trains clients of one round in one step."""
    return {"name": "vectorised", "device": scale.device, "clients_per_step": 3 if scale.tiny else 100, **more}


def trainings(model: Any, scale: Scale, sizes: list[int], exact: bool) -> list[Any]:
    """Return the local training of clients with random images; `exact`: in float64."""
    import numpy as np
    import torch

    from fedkd.config import Sgd
    from fedkd.data.images import Dataset, Images
    from fedkd.learning.batches import Preprocess
    from fedkd.learning.training import LocalTraining
    from fedkd.streams import torch_stream

    class Exact(Preprocess):
        def scaled(self, images: torch.Tensor) -> torch.Tensor:
            return images.double().div_(255).sub_(0.5).div_(0.5)

    draw, side = np.random.default_rng(0), 12 if scale.tiny else 28
    empty = Images(np.zeros((0, 1, side, side), np.uint8), np.zeros(0, np.int64))
    prepared = (Exact if exact else Preprocess)(Dataset(empty, empty, ()), "crop_flip", torch.device(scale.device))
    sgd, made = Sgd(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4), []
    for number, size in enumerate(sizes):
        data = Images(draw.integers(0, 256, (size, 1, side, side), dtype=np.uint8), draw.integers(0, 10, size))
        order, labels = torch_stream(0, 1, number, "order"), torch.from_numpy(data.labels)
        made.append(LocalTraining(model, data, labels, 1, 32, sgd, prepared, order))
    return made


def built(name: str, scale: Scale, **options: Any) -> Any:
    """Return a model with weights from a stream."""
    from fedkd.models.build import build
    from fedkd.streams import default_stream, torch_stream

    side = 12 if scale.tiny else 28
    with default_stream(torch_stream(0, 0, "server", "model")):
        return build(name, options, (1, side, side), 10).to(scale.device)


def check_stacked(scale: Scale) -> Result:
    """Clients of unequal sizes in one step against one at a time, in float64; and five against two and three."""
    from fedkd.learning.stacked_models import Path as Form
    from fedkd.learning.stacked_training import train_stacked
    from fedkd.learning.training import train_alone

    row: Result = {"good": True}
    sizes = [40, 33, 20, 50, 7] if scale.tiny else [640, 500, 330, 400, 200]
    for name, options in (("lenet5", {}), ("resnet8", {"norm": "group"}), ("resnet8", {"norm": "batch"})):
        model = built(name, scale, **options).double()
        start, alone = {n: t.clone() for n, t in model.state_dict().items()}, []
        for local in trainings(model, scale, sizes, exact=True):
            model.load_state_dict(start)
            train_alone(local)
            alone.append({n: t.clone() for n, t in model.state_dict().items()})
        forms: tuple[Form, ...] = ("vmap", "folded")
        for path in forms:
            together = train_stacked(trainings(model, scale, sizes, exact=True), [start] * 5, path)
            parts = [train_stacked(trainings(model, scale, sizes, exact=True)[a:b], [start] * (b - a), path)
                     for a, b in ((0, 2), (2, 5))]  # fmt: skip
            apart = max(_apart(one.weights, other) for one, other in zip(together, alone, strict=True))
            split = max(
                _apart(one.weights, other.weights) for one, other in zip(together, parts[0] + parts[1], strict=True)
            )
            row[f"{name} {options.get('norm', '')} {path}".replace("  ", " ")] = {"alone": apart, "split": split}
            row["good"] &= apart < 1e-10 and split < 1e-10
    return row


def steps(scale: Scale) -> Result:
    """Seconds of a step of LeNet-5, batches of 32: one client, and 1, 10, 100 clients in one step by each path."""
    import torch

    from fedkd.learning.stacked_models import Path as Form
    from fedkd.learning.stacked_training import train_stacked
    from fedkd.learning.training import train_alone

    model, row = built("lenet5", scale), {}
    start = {n: t.clone() for n, t in model.state_dict().items()}
    many = 2 if scale.tiny else 20

    def timed(work: Callable[[], Any]) -> float:
        for _ in range(2):
            begin = time.perf_counter()
            work()
            if scale.device == "cuda":
                torch.cuda.synchronize()
        return (time.perf_counter() - begin) / many

    row["alone"] = timed(lambda: train_alone(trainings(model, scale, [32 * many], exact=False)[0]))
    forms: tuple[Form, ...] = ("vmap", "folded")
    for count in (1, 3) if scale.tiny else (1, 10, 100):
        for path in forms:
            made = trainings(model, scale, [32 * many] * count, exact=False)
            row[f"{count} {path}"] = timed(partial(train_stacked, made, [start] * count, path))
    return row


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


def other(name: str, engine: Callable[[Scale], dict[str, Any]]) -> Callable[[Scale], Result]:
    """One of the other methods by one of our engines."""

    def row(scale: Scale) -> Result:
        table = engine(scale)
        return rounds_of(method(name, table, scale), table["device"])

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
        "check/stacked": (90, check_stacked),
        "steps": (90, steps),
    }
    for work in ("mnist-10", "mnist-100"):
        made |= {f"{work}/plain": (60, plain(work)), f"{work}/inline": (90, ours(work, inline))}
        made |= {f"{work}/vectorised": (90, ours(work, stacked))}
    made |= {"check/ray": (120, check_ray), "mnist-10/ray": (90, ours("mnist-10", quarter))}
    made |= {"mnist-100/ray": (90, ours("mnist-100", quarter))}
    for work in ("resnet8", "resnet18"):
        made |= {f"{work}/plain": (90, plain(work)), f"{work}/inline": (90, ours(work, inline))}
        made |= {f"{work}/vectorised": (90, ours(work, stacked))}
    for name in ("knfu", "fedftg", "fedx", "fedlgd"):
        made |= {f"{name}/inline": (90, other(name, inline)), f"{name}/vectorised": (90, other(name, stacked))}
    for name in ("dm", "dsa"):
        made |= {f"{name}/device": (60, distil(name))}
    for name in ("knfu", "fedftg", "fedlgd"):
        made |= {f"{name}/cpu": (120, other(name, lambda scale: {"name": "inline", "device": "cpu"}))}
    for name in ("dm", "dsa"):
        made |= {f"{name}/cpu": (60, distil(name, cpu=True))}
    made |= {f"{work}/ray": (90, ours(work, quarter)) for work in ("resnet8", "resnet18")}
    return made | {"mnist-10/flower": (120, flower_simulation("mnist-10")), "mnist-10/pfl": (90, pfl)}

"""The rows of benchmarks/gpu.py: what each measures, and their order."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import gpu_checks as check
from gpu_measure import memory, reset_memory, rounds_of, summary
from gpu_work import Result, Scale, Skipped, built, fedavg, images_of, inline, method, quarter, stacked, trainings


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


def steps(scale: Scale) -> Result:
    """Seconds of a step of LeNet-5, batches of 32: one client, and 1, 10, 100 clients in one step by each path.

    `fixed`: the step of fixed shapes, on a GPU replayed as a CUDA graph.
    """
    import torch

    from fedkd.learning.stacked_graphs import StepGraphs, record_graph
    from fedkd.learning.stacked_models import Path as Form
    from fedkd.learning.stacked_training import train_stacked
    from fedkd.learning.training import train_alone

    model, row, events = built("lenet5", scale), {}, list[str]()
    start = {n: t.clone() for n, t in model.state_dict().items()}
    many = 2 if scale.tiny else 20

    def timed(work: Callable[[], Any]) -> float:
        for _ in range(3):  # a graph is recorded in the second
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
            fixed = StepGraphs(events.append, record_graph if scale.device == "cuda" else None)
            row[f"{count} {path} fixed"] = timed(partial(train_stacked, made, [start] * count, path, fixed))
    return row | {"events": events}


def plain(work: str) -> Callable[[Scale], Result]:
    """A plain loop on the same device."""

    def row(scale: Scale) -> Result:
        from engine import plain_one

        config = fedavg(work, inline(scale), scale)
        reset_memory(scale.device)
        return summary(plain_one(config, scale.device)) | memory(scale.device) | {"cohort": config.cohort}

    return row


def ours(work: str, engine: Callable[[Scale], dict[str, Any]], precision: str = "fp32") -> Callable[[Scale], Result]:
    """FedAvg by one of our engines."""
    return lambda scale: rounds_of(fedavg(work, engine(scale), scale, precision=precision), scale.device)


def flower_simulation(work: str) -> Callable[[Scale], Result]:
    """FedAvg by the same ServerApp and ClientApp under Flower's own simulation."""

    def row(scale: Scale) -> Result:
        from engine import flower

        share = 0.5 if scale.device == "cuda" else 0.0
        return summary(flower(fedavg(work, inline(scale), scale), share))

    return row


def pfl(scale: Scale) -> Result:
    """FedAvg by pfl in two processes, where it is installed. It trains on the CPU here: see other_frameworks.py."""
    if importlib.util.find_spec("pfl") is None:
        raise Skipped("pfl is not installed")
    from other_frameworks import pfl_two

    return summary(pfl_two(fedavg("mnist-10", inline(scale), scale)))


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
        reset_memory(scale.device if not cpu else "cpu")
        work = Distillation(DistillConfig.model_validate(tables))
        work.iterate(1)
        begin = time.perf_counter()
        for number in range(2, 2 + iterations):
            work.iterate(number)
        taken = time.perf_counter() - begin
        return {"seconds": taken / iterations, "iterations": iterations, "device": str(work.device)}

    return row


@cache
def rows() -> dict[str, tuple[float, Callable[[Scale], Result]]]:
    """Return the rows: the most seconds of each, and what it does. A name that ends in `/cpu` runs without the GPU."""
    made: dict[str, tuple[float, Callable[[Scale], Result]]] = {
        "start": (60, start),
        "check/twice": (90, check.twice),
        "check/cpu": (90, check.on_cpu),
        "check/stacked": (90, check.in_one_step),
        "check/graphs": (90, check.graphs),
        "steps": (120, steps),
        "paths": (60, check.paths),
        "check/memory": (60, check.memory),
    }
    recorded, compiled = partial(stacked, cuda_graphs=True), partial(stacked, compile=True)
    for work in ("mnist-10", "mnist-100"):
        made |= {f"{work}/plain": (60, plain(work)), f"{work}/inline": (90, ours(work, inline))}
        made |= {f"{work}/vectorised": (90, ours(work, stacked)), f"{work}/graphs": (90, ours(work, recorded))}
    made |= {"check/ray": (120, check.by_ray), "mnist-10/ray": (90, ours("mnist-10", quarter))}
    made |= {"mnist-100/ray": (90, ours("mnist-100", quarter))}
    for work in ("resnet8", "resnet18"):
        made |= {f"{work}/plain": (90, plain(work)), f"{work}/inline": (90, ours(work, inline))}
        made |= {f"{work}/vectorised": (90, ours(work, stacked)), f"{work}/graphs": (90, ours(work, recorded))}
        made |= {f"{work}/{name}": (90, ours(work, stacked, name)) for name in ("tf32", "bf16", "fp16")}
    for name in ("knfu", "fedftg", "fedx", "fedlgd"):
        made |= {f"{name}/inline": (90, other(name, inline)), f"{name}/vectorised": (90, other(name, stacked))}
    for name in ("dm", "dsa"):
        made |= {f"{name}/device": (60, distil(name))}
    for name in ("knfu", "fedftg", "fedlgd"):
        made |= {f"{name}/cpu": (120, other(name, lambda scale: {"name": "inline", "device": "cpu"}))}
    for name in ("dm", "dsa"):
        made |= {f"{name}/cpu": (60, distil(name, cpu=True))}
    made |= {f"{work}/ray": (90, ours(work, quarter)) for work in ("resnet8", "resnet18")}
    made |= {"check/compiled": (300, check.compiled), "mnist-10/compiled": (120, ours("mnist-10", compiled))}
    return made | {"mnist-10/flower": (120, flower_simulation("mnist-10")), "mnist-10/pfl": (90, pfl)}

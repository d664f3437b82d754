"""The work of the rows of benchmarks/gpu.py: images, configs, engines, clients to train."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Result = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Where and how large: `device` cuda or cpu; `tiny`: as small as it can be; `sets`: a folder for random images."""

    device: str
    tiny: bool
    sets: Path


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


def fedavg(work: str, engine: dict[str, Any], scale: Scale, rounds: int = 7, precision: str = "fp32") -> Any:
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
        "train": {
            "precision": precision, "batch_size": 8 if scale.tiny else 32, "optimizer": {"name": "sgd", "lr": 0.05},
        },
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


class Skipped(Exception):
    """A row that cannot be measured here, and why."""


def inline(scale: Scale, **more: Any) -> dict[str, Any]:
    """Return the engine that trains one client at a time."""
    return {"name": "inline", "device": scale.device, **more}


def quarter(scale: Scale) -> dict[str, Any]:
    """Return the engine of four Ray workers on one GPU."""
    share = 0.25 if scale.device == "cuda" else 0.0
    cpus = 0.25 if scale.tiny else 1.0
    return {"name": "ray", "workers": 4, "gpus_per_worker": share, "cpus_per_worker": cpus, "device": scale.device}


def stacked(scale: Scale, **more: Any) -> dict[str, Any]:
    """Return the engine that trains clients of one round in one step."""
    return {"name": "vectorised", "device": scale.device, "clients_per_step": 3 if scale.tiny else 100, **more}


def trainings(model: Any, scale: Scale, sizes: list[int], exact: bool) -> list[Any]:
    """Return the local training of clients with random images of one set; `exact`: in float64."""
    import numpy as np
    import torch

    from fedkd.config import Sgd
    from fedkd.data.samples import Rows, Samples
    from fedkd.learning.training import LocalTraining
    from fedkd.streams import torch_stream

    whole, prepared = _set(scale, exact)
    draw, sgd, made = np.random.default_rng(0), Sgd(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4), []
    for number, size in enumerate(sizes):
        rows = Rows(whole, draw.integers(0, len(whole), size))
        data = Samples(whole[rows.positions], draw.integers(0, 10, size), rows=rows)
        order, labels = torch_stream(0, 1, number, "order"), torch.from_numpy(data.labels)
        made.append(LocalTraining(model, data, labels, 1, 32, sgd, prepared, order))
    return made


@cache
def _set(scale: Scale, exact: bool) -> tuple[Any, Any]:
    """Return random images, and their preprocessing, which keeps them on a GPU."""
    import numpy as np
    import torch

    from fedkd.data.codec import Codec
    from fedkd.data.spec import DataSpec
    from fedkd.learning.batches import Preprocess

    class Exact(Preprocess):
        def scaled(self, images: torch.Tensor) -> torch.Tensor:
            return images.double().div_(255).sub_(0.5).div_(0.5)

    side = 12 if scale.tiny else 28
    whole = np.random.default_rng(1).integers(0, 256, (5000, 1, side, side), dtype=np.uint8)
    codec = Codec(DataSpec(kind="image", shape=(1, side, side), largest=255.0), np.full(1, 0.5), np.full(1, 0.5))
    return whole, (Exact if exact else Preprocess)(codec, "crop_flip", torch.device(scale.device), [whole])


def built(name: str, scale: Scale, **options: Any) -> Any:
    """Return a model with weights from a stream."""
    from fedkd.data.spec import Form
    from fedkd.models.build import build
    from fedkd.streams import default_stream, torch_stream

    side = 12 if scale.tiny else 28
    with default_stream(torch_stream(0, 0, "server", "model")):
        return build(name, options, Form("image", (1, side, side)), 10).to(scale.device)

"""Checkpoints: the server's and the nodes' state after a round, in safetensors and JSON, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .errors import InputError
from .payload import Tensors, array_record, tensors_of

_SERVER = "server.safetensors"
_NODES = "nodes"
_ABOUT = "checkpoint.json"


def save(folder: Path, number: int, server: Tensors, nodes: Iterable[tuple[int, RecordDict]], keep: int) -> Path:
    """Write the checkpoint of a round under `folder`, and delete all but the newest `keep`. Returns its path."""
    target = folder / f"round-{number:06d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / _NODES).mkdir(parents=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in server.items()}, partial / _SERVER)
    count = 0
    for node, state in nodes:
        _save_node(partial / _NODES / f"{node}.safetensors", state)
        count += 1
    (partial / _ABOUT).write_text(json.dumps({"round": number, "nodes": count}) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _save_node(path: Path, state: RecordDict) -> None:
    tensors: Tensors = {}
    others: dict[str, Any] = {}
    for key, record in state.items():
        if isinstance(record, ArrayRecord):
            tensors.update({f"{key}\n{name}": tensor for name, tensor in tensors_of(record).items()})
        else:
            others[key] = {"kind": type(record).__name__, "values": dict(record)}
    save_file(tensors, path, metadata={"records": json.dumps(others)})


def latest(folder: Path) -> tuple[int, Path]:
    """Return the newest complete checkpoint and its round. Raises InputError where there is none."""
    found = _all(folder)
    if not found:
        raise InputError(f"There is no complete checkpoint in {folder}.")
    return int(found[-1].name.removeprefix("round-")), found[-1]


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if (path / _ABOUT).is_file())


def load_server(checkpoint: Path) -> Tensors:
    """Return the server's state. Raises InputError naming a damaged file."""
    try:
        tensors: Tensors = load_file(checkpoint / _SERVER)
    except (SafetensorError, OSError) as error:
        raise InputError(f"The checkpoint {checkpoint / _SERVER} is damaged: {error}") from error
    return tensors


def load_nodes(checkpoint: Path) -> Iterator[tuple[int, RecordDict]]:
    """Yield the nodes' states, by node. Raises InputError naming a damaged file."""
    files = sorted((checkpoint / _NODES).glob("*.safetensors"), key=lambda path: int(path.stem))
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                others = json.loads(file.metadata()["records"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"The checkpoint {path} is damaged: {error}") from error
        records: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            record, name = key.split("\n", 1)
            records.setdefault(record, {})[name] = tensor
        state = RecordDict({key: array_record(arrays) for key, arrays in records.items()})
        for key, entry in others.items():
            state[key] = (MetricRecord if entry["kind"] == "MetricRecord" else ConfigRecord)(entry["values"])
        yield int(path.stem), state

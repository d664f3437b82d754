"""Checkpoints: the state of the server and the nodes after a round, in safetensors and JSON. Writing is atomic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.state import State
from ..errors import InputError, RunError
from ..messages.arrays import Tensors, array_record, tensors_of
from ..messages.ledger import count_bytes
from .run_folder import writing

_SERVER = "server.safetensors"

_NODES = "nodes"

_ABOUT = "checkpoint.json"


def save(folder: Path, number: int, server: State, nodes: Iterable[tuple[int, RecordDict]], keep: int) -> Path:
    """Write the checkpoint of a round under `folder`, and delete all but the newest `keep`. Returns its path.

    Raises RunError if it cannot be written; then the checkpoints before it stay.
    """
    target = folder / f"round-{number:06d}"
    partial = folder / f".{target.name}.partial"
    needed = sum(tensor.nbytes for tensor in server.tensors.values())
    try:
        with writing(target, lambda: needed):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()  # not its parents: a run folder that was removed does not come back
            (partial / _NODES).mkdir()
            _save(partial / _SERVER, server.tensors, {"state": server.form})
            count = 0
            for node, state in nodes:
                needed += sum(count_bytes(state).values())
                save_node(partial / _NODES / f"{node}.safetensors", state)
                count += 1
            digests = {str(path.relative_to(partial)): _digest(path) for path in sorted(partial.rglob("*.safetensors"))}
            (partial / _ABOUT).write_text(
                json.dumps({"round": number, "nodes": count, "files": digests}) + "\n", encoding="utf-8"
            )
            shutil.rmtree(target, ignore_errors=True)
            os.replace(partial, target)
    except RunError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def save_node(path: Path, state: RecordDict) -> None:
    """Write a node's state to a file."""
    tensors: Tensors = {}
    others: dict[str, Any] = {}
    for key, record in state.items():
        if isinstance(record, ArrayRecord):
            tensors.update({f"{key}\n{name}": tensor for name, tensor in tensors_of(record).items()})
        else:
            others[key] = {"kind": type(record).__name__, "values": dict(record)}
    _save(path, tensors, others)


def _save(path: Path, tensors: Tensors, others: dict[str, Any]) -> None:
    """Write tensors and records. The format sorts its tensors, so their order is written separately."""
    about = json.dumps({"names": list(tensors), "records": others})
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"about": about})


def _load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            return {name: file.get_tensor(name) for name in about["names"]}, about["records"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"The checkpoint {path} is damaged: {error}") from error


def latest(folder: Path, on_event: Callable[[str], None] = lambda text: None) -> tuple[int, Path]:
    """Return the newest complete checkpoint, and its round; `on_event` gets a line about each newer, damaged one.

    Raises InputError if there is none. The message names damaged files.
    """
    damaged = []
    for path in reversed(_all(folder)):
        if (objection := _objection(path)) is None:
            return int(path.name.removeprefix("round-")), path
        damaged.append(f"The checkpoint {path} is damaged: {objection}.")
        on_event(f"{damaged[-1]} The one before it is used.")
    raise InputError(" ".join([f"There is no complete checkpoint in {folder}.", *damaged]))


def there_are_none(folder: Path) -> bool:
    """Return whether a run ended before its first checkpoint was written."""
    return not _all(folder)


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if path.is_dir())


def _objection(checkpoint: Path) -> str | None:
    """Return the error of a checkpoint, if any: files are missing, or differ from what was written."""
    try:
        digests = json.loads((checkpoint / _ABOUT).read_text(encoding="utf-8"))["files"]
        for name, digest in digests.items():
            if _digest(checkpoint / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def load_server(checkpoint: Path) -> State:
    """Return the server's state. Raises InputError, which names the file, for a damaged file or an earlier version."""
    tensors, records = _load(checkpoint / _SERVER)
    if "state" not in records:
        raise InputError(
            f"The checkpoint {checkpoint} was written by an earlier version of fedkd, which this one cannot continue: "
            "run the config again in a new folder."
        )
    return State(tensors, records["state"])


def load_nodes(checkpoint: Path) -> Iterator[tuple[int, RecordDict]]:
    """Yield the nodes' states, by node. Raises InputError, which names the file, for a damaged file."""
    for path in sorted((checkpoint / _NODES).glob("*.safetensors"), key=lambda path: int(path.stem)):
        yield int(path.stem), load_node(path)


def load_node(path: Path) -> RecordDict:
    """Return the node's state in a file. Raises InputError, which names the file, if it is damaged."""
    tensors, others = _load(path)
    records: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        record, name = key.split("\n", 1)
        records.setdefault(record, {})[name] = tensor
    state = RecordDict({key: array_record(arrays) for key, arrays in records.items()})
    for key, entry in others.items():
        state[key] = (MetricRecord if entry["kind"] == "MetricRecord" else ConfigRecord)(entry["values"])
    return state

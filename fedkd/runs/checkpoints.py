"""Checkpoints: the state of the server and the nodes after a round, in safetensors and JSON. Writing is atomic."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import safe_open
from safetensors.torch import save as to_bytes

from ..config import Config, DistillConfig, to_table
from ..core.state import State
from ..errors import InputError, RunError, described, on_one_line, reason_of
from ..files import parse_json, put_in_place, put_new, reading, refuse_odd, refuse_shortage, writing
from ..messages.arrays import Tensors, array_record, tensors_of
from ..messages.ledger import count_bytes
from .forms import About, read_form

Owner = dict[str, Any]  # what a checkpoint's run is known by

_SERVER = "server.safetensors"

_NODES = "nodes"

_ABOUT = "checkpoint.json"

_NAME = re.compile(r"round-(\d{6,9})")  # others beside them are a user's copies, or an editor's files
_NODE = re.compile(r"nodes/(0|[1-9]\d{0,18})\.safetensors")


def owner_of(config: Config | DistillConfig) -> Owner:
    """Return what distinguishes the checkpoints of a run from those of others: its method, seed, model and data."""
    table = to_table(config)
    method = "strategy" if isinstance(config, Config) else "distiller"
    data = {key: value for key, value in table["data"].items() if key not in ("root", "download")}
    found = {"method": table[method]["name"], "seed": config.seed}
    return found | {
        name: hashlib.blake2b(json.dumps(part, sort_keys=True).encode(), digest_size=8).hexdigest()
        for name, part in (("options", table[method]), ("model", table["model"]), ("data", data))
    }


def save(
    folder: Path, number: int, server: State, nodes: Iterable[tuple[int, RecordDict]], keep: int, owner: Owner
) -> Path:
    """Write the checkpoint of a round under `folder`, and read it back. Returns its path.

    Then all but the newest `keep` up to this round are deleted. `owner`: of its run, see `owner_of`. Raises RunError if
    it cannot be written, or is not what was written; then the checkpoints before it stay.
    """
    target = folder / f"round-{number:06d}"
    partial = folder / f".{target.name}.partial"
    needed = sum(tensor.nbytes for tensor in server.tensors.values())
    try:
        with writing(target, lambda: needed):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()  # not its parents: a run folder that was removed does not come back
            (partial / _NODES).mkdir()
            files = {_SERVER: _save(partial / _SERVER, server.tensors, {"state": server.form})}
            for node, state in nodes:
                needed += sum(count_bytes(state).values())
                name = f"{_NODES}/{node}.safetensors"
                files[name] = save_node(partial / name, state)
            about = {"round": number, "owner": owner, "files": dict(sorted(files.items()))}
            put_new(partial / _ABOUT, json.dumps(about).encode() + b"\n")
            if (objection := _objection(partial, number)) is not None:
                raise OSError(f"it was written, but {objection}")
            shutil.rmtree(target, ignore_errors=True)
            put_in_place(partial, target)
    except RunError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in [path for found, path in _all(folder) if found <= number][:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def save_node(path: Path, state: RecordDict) -> dict[str, Any]:
    """Write a node's state to a file; return its digest and size. Raises OSError."""
    tensors: Tensors = {}
    others: dict[str, Any] = {}
    for key, record in state.items():
        if isinstance(record, ArrayRecord):
            tensors.update({f"{key}\n{name}": tensor for name, tensor in tensors_of(record).items()})
        else:
            others[key] = {"kind": type(record).__name__, "values": dict(record)}
    return _save(path, tensors, others)


def _save(path: Path, tensors: Tensors, others: dict[str, Any]) -> dict[str, Any]:
    """Write tensors and records; return digest and size. The format sorts tensors, so their order is kept apart."""
    about = json.dumps({"names": list(tensors), "records": others})
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    content = to_bytes(whole, metadata={"about": about})
    put_new(path, content)
    return {"digest": hashlib.blake2b(content, digest_size=16).hexdigest(), "size": len(content)}


def _load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    try:
        refuse_odd(path)
        with safe_open(path, framework="pt") as file:
            about = parse_json(file.metadata()["about"])
            tensors, records = {name: file.get_tensor(name) for name in about["names"]}, about["records"]
            if not isinstance(records, dict):
                raise ValueError("its records are no table")
            return tensors, records
    except Exception as error:  # safetensors and torch raise several types for a file that is none of theirs
        refuse_shortage(path, error)
        raise InputError(f"The checkpoint {path} is damaged: {described(error)}.") from error


def latest(
    folder: Path, on_event: Callable[[str], None] = lambda text: None, owner: Owner | None = None
) -> tuple[int, Path]:
    """Return the newest complete checkpoint, and its round; `on_event` gets a line about each newer, damaged one.

    `owner`: of the run that goes on, see `owner_of`. Raises InputError if there is none, which names damaged files, and
    for the checkpoint of another run; OutOfReach if the machine is too short of something to read one.
    """
    damaged = []
    for number, path in reversed(_all(folder)):
        if (objection := _objection(path, number)) is None:
            if owner is not None:
                _refuse_other(path, owner)
            return number, path
        damaged.append(f"The checkpoint {path} is damaged: {objection}.")
        on_event(f"{damaged[-1]} The one before it is used.")
    raise InputError(" ".join([f"There is no complete checkpoint in {folder}.", *damaged[:3]]))


def drop_newer(checkpoint: Path) -> None:
    """Delete the damaged checkpoints after the one from which a run goes on: the run makes them again.

    A disk may read one again later, when metrics.jsonl no longer has its round.
    """
    paths = [path for _, path in _all(checkpoint.parent)]
    for path in paths[paths.index(checkpoint) + 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def drop_after(folder: Path, number: int) -> None:
    """Delete the checkpoints of rounds after `number`: a run that goes on from there makes them again."""
    for found, path in _all(folder):
        if found > number:
            shutil.rmtree(path, ignore_errors=True)


def _refuse_other(checkpoint: Path, owner: Owner) -> None:
    with reading(checkpoint):
        found = read_form(checkpoint / _ABOUT, About, checkpoint)["owner"]
    unlike = [name for name in owner if found.get(name) != owner[name]]
    if unlike:
        known = [
            f"its {name} is {on_one_line(str(found.get(name)), 60)}, not {owner[name]}"
            if name in ("method", "seed")
            else f"its {name} are others"
            for name in unlike
        ]
        raise InputError(
            f"The checkpoint {checkpoint} is of another run: {', '.join(known)}. Remove it, or run the config again in "
            "a new folder."
        )


def there_are_none(folder: Path) -> bool:
    """Return whether a run ended before its first checkpoint was written."""
    return not _all(folder)


def _all(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in a folder with their rounds, oldest first."""
    with reading(folder):
        found = [(name, path) for path in folder.glob("round-*") if (name := _NAME.fullmatch(path.name))]
        return sorted((int(name[1]), path) for name, path in found if path.is_dir())


def _objection(checkpoint: Path, number: int) -> str | None:
    """Return the error of a round's checkpoint, if any: files are missing, or differ from what was written."""
    try:
        about = read_form(checkpoint / _ABOUT, About, checkpoint)
        if about["round"] != number:
            return f"it is that of round {about['round']}"
        if _SERVER not in about["files"]:
            return f"{_ABOUT} has no {_SERVER}"
        for name, kept in about["files"].items():
            if name != _SERVER and not _NODE.fullmatch(name):
                return f"{_ABOUT} has a file {on_one_line(name, 60)!r}, which no checkpoint has"
            path = checkpoint / name
            refuse_odd(path, checkpoint)
            if path.stat().st_size != kept["size"] or _digest(path) != kept["digest"]:
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        refuse_shortage(checkpoint, error)
        missing = f"{Path(error.filename).name}: " if isinstance(error, OSError) and error.filename else ""
        return on_one_line(f"{missing}{reason_of(error)}", 200).removesuffix(".")
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
    try:
        names = read_form(checkpoint / _ABOUT, About, checkpoint)["files"]
    except (OSError, ValueError) as error:
        refuse_shortage(checkpoint, error)
        raise InputError(f"The checkpoint {checkpoint} is damaged: {reason_of(error)}.") from error
    for number in sorted(int(found[1]) for name in names if (found := _NODE.fullmatch(name))):
        yield number, load_node(checkpoint / _NODES / f"{number}.safetensors")


def load_node(path: Path) -> RecordDict:
    """Return the node's state in a file. Raises InputError, which names the file, if it is damaged."""
    tensors, others = _load(path)
    try:
        records: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            record, name = key.split("\n", 1)
            records.setdefault(record, {})[name] = tensor
        state = RecordDict({key: array_record(arrays) for key, arrays in records.items()})
        for key, entry in others.items():
            state[key] = (MetricRecord if entry["kind"] == "MetricRecord" else ConfigRecord)(entry["values"])
        return state
    except Exception as error:  # Flower's records raise several types for values that they do not take
        refuse_shortage(path, error)
        raise InputError(f"The checkpoint {path} is damaged: {described(error)}.") from error

"""Checkpoints: damaged files, and states with odd values whose digests are right."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes

from fedkd.core.state import pack, unpack
from fedkd.messages.arrays import array_record
from fedkd.runs.checkpoints import latest, load_nodes, load_server, save
from fuzz.frame import new_folder, only_refusals
from fuzz.mutations import damaged, with_odd_values

OWNER = {"method": "fedavg", "seed": 0, "options": "a", "model": "b", "data": "c"}
SERVER, NODE, ABOUT = "server.safetensors", "nodes/3.safetensors", "checkpoint.json"
_HOME = tempfile.TemporaryDirectory()


@functools.cache
def whole() -> Path:
    """Return a whole folder of one checkpoint; it is gone with the process."""
    folder = Path(_HOME.name) / "whole"
    folder.mkdir()
    weights = {"w": torch.ones(2, 3), "deep": [1, 2.5, None, {"a": (torch.zeros(2),)}], "names": {"x", "y"}}
    numbers = {"one": MetricRecord({"a": 1}), "two": ConfigRecord({"b": "x"})}
    state = RecordDict({"model": array_record({"w": torch.ones(2)}), **numbers})
    save(folder, 1, pack(weights, "a test"), [(3, state)], 1, OWNER)
    return folder


@functools.cache
def _about(name: str) -> Any:
    from safetensors import safe_open

    with safe_open(whole() / "round-000001" / name, framework="pt") as file:
        return json.loads(file.metadata()["about"])


@st.composite
def _odd(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from([SERVER, NODE]))
    about = json.dumps(draw(with_odd_values(_about(name))))
    tensors = {"w": torch.ones(2, 3), "deep/3/a/0": torch.zeros(2), "model\nw": torch.ones(2)}
    return name, to_bytes(tensors, metadata={"about": about.encode("utf-8", "replace").decode()})


@st.composite
def _abouts(draw: st.DrawFn) -> tuple[str, bytes]:
    kept = json.loads((whole() / "round-000001" / ABOUT).read_text())
    return ABOUT, json.dumps(draw(with_odd_values(kept))).encode()


@st.composite
def _bytes(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from([SERVER, NODE, ABOUT]))
    return name, draw(damaged((whole() / "round-000001" / name).read_bytes()))


INPUTS = _odd() | _abouts() | _bytes()


def target(drawn: tuple[str, bytes]) -> None:
    name, content = drawn
    with new_folder(whole()) as folder:
        home = folder / "round-000001"
        (home / name).write_bytes(content)
        with only_refusals():
            latest(folder, owner=OWNER)
        if name != ABOUT:  # as if whoever made it had also written its digest
            about = json.loads((home / ABOUT).read_text())
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            about["files"][name] = {"digest": digest, "size": len(content)}
            (home / ABOUT).write_text(json.dumps(about))
        for read in (lambda path: unpack(load_server(path)), lambda path: list(load_nodes(path))):
            with only_refusals():
                latest(folder, owner=OWNER)
                read(home)

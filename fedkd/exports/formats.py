"""Writes a model to a file: safetensors, ONNX, TorchScript, torch.export; with its model card beside it."""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..errors import InputError, RunError, described, on_one_line, unknown
from ..files import write, write_output
from ..models.adapter import own_names
from ..registry import installed
from ..runs.run_folder import make_folder
from .cards import card_of, to_text
from .trained import TrainedModel

Format = Literal["safetensors", "onnx", "torchscript", "torch.export"]
ENDINGS: dict[Format, str] = {
    "safetensors": ".safetensors", "onnx": ".onnx", "torchscript": ".pt", "torch.export": ".pt2",
}  # fmt: skip
TABLE = "fedkd"  # the key of the table in the file's own metadata
EXTRA = "fedkd.json"  # the same in the files of torch
_MOST_DIFFERENCE = 1e-3  # of outputs of ONNX and PyTorch, relative to the largest output


class Written(NamedTuple):
    """What an export has written. `difference`: of ONNX and PyTorch, the largest one of their outputs on samples."""

    model: Path
    card: Path
    difference: float | None


def write_model(
    model: TrainedModel,
    path: str | Path,
    format: Format = "safetensors",
    *,
    licence: str = "unknown",
    force: bool = False,
    checked_on: np.ndarray | None = None,
) -> Written:
    """Write a model to a file, and its model card beside it, `<file>.md`.

    `checked_on`: raw samples on which ONNX is compared with PyTorch; by default drawn ones. Raises InputError for files
    that are there, without `force`, and for a model that the format cannot have; RunError if ONNX gives other outputs.
    """
    path = Path(path).expanduser()
    if format not in ENDINGS:
        raise unknown("format", str(format), ENDINGS)
    card = path.with_name(f"{path.name}.md")
    if path.suffix != ENDINGS[format]:
        raise InputError(f"{on_one_line(str(path), 200)}: a file of {format} ends with {ENDINGS[format]}.")
    for file in (path, card):
        if file.is_dir():
            raise InputError(f"{file} is a folder; name a file.")
        if file.exists() and not force:
            raise InputError(f"{file} is there already; --force overwrites it.")
    make_folder(path.parent)
    make: dict[Format, Callable[..., bytes]] = {
        "safetensors": _safetensors, "onnx": _onnx, "torchscript": _torchscript, "torch.export": _exported,
    }  # fmt: skip
    batch = model.encoded(checked_on) if checked_on is not None and len(checked_on) else drawn_batch(model)
    try:
        content = make[format](model, batch)
    except InputError:
        raise
    except Exception as error:  # torch's exporters raise many types, ONNX's around the one that says why
        raise InputError(
            f"{model.about.architecture.name} cannot be written as {format}: {described(error.__cause__ or error)}."
        ) from error
    difference = _difference(model, content, batch) if format == "onnx" else None
    _put(path, content)
    _put(card, card_of(model, format, path.name, licence).encode())
    return Written(path, card, difference)


def _put(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, unless it is a link or a device."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        write_output(path, content)
    else:
        write(path, content, "Make space, or name another place, and give the command again.")


def drawn_batch(model: TrainedModel) -> Tensor:
    """Return eight encoded samples without meaning."""
    return model.codec.form.drawn(8, torch.Generator().manual_seed(0))


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a module by the names of its own code: those of its `state_dict()`, and frozen ones."""
    state = dict(module.state_dict())
    for name in getattr(module, "fedkd_frozen", ()):
        path, _, last = str(name).rpartition(".")
        state[name] = getattr(module.get_submodule(path), last)
    names = own_names(module)
    found = {names.get(name, name): tensor for name, tensor in state.items()}
    return found if len(found) == len(state) else state


def _plain(model: TrainedModel) -> nn.Module:
    """Return a copy of the module as exporters need it: in torch's usual memory order, no tensor left out of its state.

    Frozen tensors are buffers that `state_dict()` leaves out; those of a layer whose code knows a parameter of this
    name are no constants for ONNX.
    """
    module = copy.deepcopy(model.module).cpu().eval()
    for part in module.modules():
        part._non_persistent_buffers_set.clear()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.contiguous().clone()
    return module


def _safetensors(model: TrainedModel, batch: Tensor) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in whole_state(model.module).items()}
    return _in_order(to_bytes(tensors, metadata={TABLE: to_text(model), "format": "pt"}))


def _in_order(content: bytes) -> bytes:
    """Return a file of safetensors with its metadata in order of their keys: the library draws this order anew."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def _onnx(model: TrainedModel, batch: Tensor) -> bytes:
    with installed("--format onnx (pip install 'fedkd[onnx]')"):
        import onnx
        import onnxscript  # noqa: F401
    with warnings.catch_warnings(action="ignore"), tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        torch.onnx.export(
            _plain(model), (batch,), file, dynamo=True, external_data=False, verbose=False,
            input_names=["inputs"], output_names=["outputs"], dynamic_shapes=({0: torch.export.Dim("samples")},),
        )  # fmt: skip
        found = onnx.load(file)
    for part in (found.graph, *found.functions):
        for node in part.node:
            del node.metadata_props[:]  # stack traces, with the paths of this machine
    found.metadata_props.add(key=TABLE, value=to_text(model))
    content: bytes = found.SerializeToString()
    return content


def _difference(model: TrainedModel, content: bytes, batch: Tensor) -> float:
    """Return the largest difference of the outputs of ONNX and PyTorch. Raises RunError if it is no rounding."""
    with installed("--format onnx (pip install 'fedkd[onnx]')"):
        import onnxruntime
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = model(batch).cpu().numpy()
    found = session.run(None, {session.get_inputs()[0].name: batch.cpu().numpy()})[0]
    difference = float(np.abs(found - wanted).max(initial=0.0))
    largest = float(np.abs(wanted).max(initial=1.0))
    if not difference <= _MOST_DIFFERENCE * largest:
        raise RunError(f"ONNX gives other outputs than PyTorch: they differ by {difference:g}, of {largest:g}.")
    return difference


def _torchscript(model: TrainedModel, batch: Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        traced: Any = torch.jit.trace(_plain(model), batch)
        torch.jit.save(traced, buffer, _extra_files={EXTRA: to_text(model)})
    return buffer.getvalue()


def _exported(model: TrainedModel, batch: Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.export.export(_plain(model), (batch,), dynamic_shapes=({0: torch.export.Dim("samples")},))
        torch.export.save(program, buffer, extra_files={EXTRA: to_text(model)})
    return buffer.getvalue()

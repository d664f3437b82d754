"""Reads a model from a file that `fedkd export` has written, perhaps a stranger's."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import NamedTable
from ..data.agreement import Agreement
from ..errors import InputError, described, on_one_line
from ..files import refuse_odd
from ..models.adapter import own_names
from ..models.build import build
from ..models.sources import SOURCES
from ..registry import installed, names
from ..streams import default_stream
from .cards import from_text
from .formats import ENDINGS, EXTRA, TABLE
from .of_run import Which, model_of_run
from .trained import About, TrainedModel

_OF_FORMAT = {ending: format for format, ending in ENDINGS.items()}
_MORE_BYTES = 2**28  # of tensors that a model is built with, beside several times those of its file
_LEAST_BYTES = 2**12  # of a tensor with its Python objects
_RUNS_CODE = ("torchscript", "torch.export")  # what such a file has in it is run


def read_model(
    path: str | Path, node: int | None = None, which: Which = "last", *, trust_code: bool = False
) -> TrainedModel:
    """Return the model in a file that `fedkd export` has written, or of the run in a folder (see `model_of_run`).

    `trust_code`: the file may run code: TorchScript, torch.export, and models that a Python file builds. Raises
    InputError, which names the file, for what is no such file, and without `trust_code` for one that would run code.
    """
    path = Path(path).expanduser()
    said = on_one_line(str(path), 200)
    if path.is_dir():
        return model_of_run(path, node, which)
    format = _OF_FORMAT.get(path.suffix.lower())
    if not path.exists():
        raise InputError(f"{said}: there is no such file or run.")
    if format is None:
        raise InputError(f"{said}: a model is a run folder, or a file that ends with {', '.join(_OF_FORMAT)}.")
    if format in _RUNS_CODE and not trust_code:
        raise InputError(
            f"{said}: a file of {format} can run code when it is loaded; add --trust-code if you trust where it comes "
            "from, or export the model as safetensors or onnx."
        )
    try:
        refuse_odd(path)
        if format == "safetensors":
            return _from_safetensors(path, said, trust_code=trust_code)
        module, text = {"onnx": _from_onnx, "torchscript": _from_torchscript, "torch.export": _from_exported}[format](
            path
        )
    except InputError:
        raise
    except Exception as error:  # the readers of files raise many types for damaged ones
        raise InputError(f"{said}: it is no model in {format}, or is damaged: {described(error)}.") from error
    if not text:
        raise _not_described(said)
    agreed, about = from_text(text, said)
    return _ready(module, agreed, about)


def _not_described(said: str) -> InputError:
    return InputError(f"{said}: it has no description of its model; was it written by `fedkd export`?")


def _ready(module: nn.Module, agreed: Agreement, about: About) -> TrainedModel:
    return TrainedModel(module, agreed.codec, agreed.classes, about)


def _from_safetensors(path: Path, said: str, *, trust_code: bool) -> TrainedModel:
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(TABLE)
        if text is None:
            raise _not_described(said)
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    agreed, about = from_text(text, said)
    _refuse_code(about.architecture, said, trust_code=trust_code)
    codec = agreed.codec
    most = _MORE_BYTES + 16 * sum(tensor.nbytes for tensor in tensors.values())
    with default_stream(torch.Generator().manual_seed(0)), _Bounded(most, said):  # its first weights are replaced
        module = build(
            about.architecture.name, about.architecture.options, codec.form, len(agreed.classes), padded=about.padded
        )
    if about.features:
        module.classifier = nn.Identity()
    _fill(module, tensors, said)
    return _ready(module, agreed, about)


def _refuse_code(architecture: NamedTable, said: str, *, trust_code: bool) -> None:
    """Raise InputError for a model that neither fedkd nor a known library builds, unless its code is trusted."""
    name = architecture.name
    if trust_code or name in names("models") or name.partition(":")[0] in SOURCES:
        return
    raise InputError(
        f"{said}: its model is built by {on_one_line(name, 100)!r}, code of its own; add --trust-code if you trust it."
    )


class _Bounded(TorchDispatchMode):
    """Refuses new tensors of more than `most` bytes together before they are made: a file may claim any size."""

    def __init__(self, most: int, said: str) -> None:
        super().__init__()
        self._most, self._said, self._made = most, said, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if not any(isinstance(one, Tensor) for one in tree_leaves((args, given))):
            shapes = {"device": torch.device("meta")} | ({"generator": None} if "generator" in given else {})
            self._made += max(func(*args, **{**given, **shapes}).nbytes, _LEAST_BYTES)
            if self._made > self._most:
                raise InputError(
                    f"{self._said}: it describes a model of more than {self._most / 1e6:.0f} MB, and has not so many "
                    "numbers."
                )
        return func(*args, **given)


@torch.no_grad()
def _fill(module: nn.Module, tensors: dict[str, Tensor], said: str) -> None:
    """Copy tensors into a module by the names of its own code. Raises InputError if they do not fit."""
    own = {
        name: tensor
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if name in module.state_dict() or name in getattr(module, "fedkd_frozen", ())
    }
    short = own_names(module)
    used = {name: short.get(name, name) if short.get(name, name) in tensors else name for name in own}
    if missing := [name for name, file_name in used.items() if file_name not in tensors]:
        raise InputError(f"{said}: it lacks the tensor {on_one_line(missing[0], 100)}.")
    for name, target in own.items():
        given = tensors[used[name]]
        if given.shape != target.shape:
            raise InputError(
                f"{said}: the tensor {on_one_line(name, 100)} is {tuple(given.shape)}, the model's is "
                f"{tuple(target.shape)}."
            )
        target.copy_(given)


class _Session(nn.Module):
    """A model in ONNX as a module."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session, self._input = session, session.get_inputs()[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(None, {self._input: inputs.cpu().numpy()})[0])


def _from_onnx(path: Path) -> tuple[nn.Module, str]:
    with installed("reading ONNX (pip install 'fedkd[onnx]')"):
        import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _Session(session), session.get_modelmeta().custom_metadata_map.get(TABLE, "")


def _from_torchscript(path: Path) -> tuple[nn.Module, str]:
    extra = {EXTRA: ""}
    with warnings.catch_warnings(action="ignore"):
        module: Any = torch.jit.load(io.BytesIO(path.read_bytes()), _extra_files=extra)
    text: Any = extra[EXTRA]
    return module, text.decode() if isinstance(text, bytes) else text


def _from_exported(path: Path) -> tuple[nn.Module, str]:
    extra = {EXTRA: ""}
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)  # it shows a traceback before the error, which says all
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    finally:
        log.setLevel(level)
    return _Callable(program.module()), extra[EXTRA]


class _Callable(nn.Module):
    """An exported program as a module: it has no eval mode of its own."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = [program]

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self._program[0](inputs)
        return output

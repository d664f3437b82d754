"""Loads weights from a local file into a model whose head may be another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError, on_one_line, some
from .adapter import Adapted, own_names
from .sources import Transformer

_MOST = 5  # names in a refusal
_COUNTER = "num_batches_tracked"


@torch.no_grad()
def load_weights(model: nn.Module, path: str, key: str) -> None:
    """Copy the tensors of a file into a built model; its head is not changed if the file has another one.

    The file: safetensors, or a state dict that `torch.save` wrote, with the names of the model before its head was
    found. Of transformers, what lies outside of the base model is a head. Raises InputError for other names or shapes.
    """
    weights = _read(path, key)
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name: short for name, short in own_names(model).items() if name in state}
    if set(weights) >= set(own):  # the names of fedkd's own files
        own = {name: name for name in own}
    base = _base_of(model)
    heads = {short for name, short in own.items() if _is_head(name, short, base)}
    tensors = {name: _fitted(weights[short], state[name]) for name, short in own.items() if short in weights}
    missing = [s for s in own.values() if s not in weights and s not in heads and not s.endswith(_COUNTER)]
    replaced = _replaced_heads(model)
    surplus = [
        name
        for name in weights
        if name not in own.values() and not name.startswith(replaced) and not (base and not name.startswith(base))
    ]
    others = [
        f"{own[name]} ({_shape(tensor)} in the file, {_shape(state[name])} in the model)"
        for name, tensor in tensors.items()
        if tensor.shape != state[name].shape and own[name] not in heads
    ]
    problems = [
        f"{what}: {some(names, _MOST)}"
        for what, names in (("missing in the file", missing), ("not in the model", surplus), ("another shape", others))
        if names
    ]
    if problems:
        raise InputError(f"{key} = {on_one_line(path, 200)!r} does not fit the model; {'; '.join(problems)}.")
    for name, tensor in tensors.items():
        if tensor.shape == state[name].shape:
            state[name].copy_(tensor)


def _read(path: str, key: str) -> dict[str, Tensor]:
    file = Path(path).expanduser()
    said = f"{key} = {on_one_line(path, 200)!r}"
    if not file.is_file():
        raise InputError(f"{said}: there is no such file; nothing is downloaded.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own
        raise InputError(f"{said} cannot be read: {on_one_line(str(error), 200)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise InputError(f"{said} has no tensors by name: save model.state_dict().")
    return dict(found)


def _base_of(model: nn.Module) -> str:
    """Return what the names of a transformer's body begin with; nothing of other models."""
    for module in model.modules():
        if isinstance(module, Transformer):
            return f"{module.model.base_model_prefix}."
    return ""


def _replaced_heads(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of heads begin with in whose place there is one."""
    several = [one.heads for one in model.modules() if isinstance(one, Adapted) and len(one.heads) > 1]
    return tuple(f"{head}." for heads in several for head in heads)


def _is_head(name: str, short: str, base: str) -> bool:
    return name.startswith(("classifier.", "head.")) or bool(base and not short.startswith(base))


def _fitted(tensor: Tensor, own: Tensor) -> Tensor:
    """Return the weights of a first convolution for another number of channels, as timm does: their mean, rescaled."""
    if tensor.dim() == 4 == own.dim() and tensor.shape[1] == 3 != own.shape[1] and tensor.shape[2:] == own.shape[2:]:
        share = tensor.float().mean(1, keepdim=True) * (3 / own.shape[1])
        return share.expand(-1, own.shape[1], -1, -1)
    return tensor


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"

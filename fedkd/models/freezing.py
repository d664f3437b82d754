"""Trains a part of a model: the head, modules by name, or low-rank adapters (LoRA). The rest is frozen.

A frozen parameter becomes a buffer that is not in `state_dict()`. So all that reads a model's state or parameters, such
as what a node sends, a checkpoint, an optimiser or a control variate, has only what can change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from ..config.tables import Table
from ..errors import InputError, on_one_line, some
from .adapter import own_names
from .sources import extra

Train = Literal["all", "head"] | list[str]


class Lora(Table):
    """`model.adapter`: low-rank adapters of the layers `targets` (Hu et al., 2022), by peft.

    `save`: modules that are trained whole, beside the head. `freeze_a`: only B is trained (Sun et al., 2024, FFA-LoRA),
    so that the mean of the adapters is the adapter of the mean.
    """

    name: Literal["lora"]
    targets: Annotated[list[str], Field(min_length=1)]
    r: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    save: list[str] = Field(default_factory=list)
    freeze_a: bool = False


def train_only(model: nn.Module, train: Train, adapter: Lora | None, key: str) -> None:
    """Freeze all of a model but its head and what `train` names, or the layers of `adapter` and what it saves.

    Batch norm of frozen parts stays in eval mode. Raises InputError for modules that the model does not have.
    """
    if adapter is not None:
        if train != "all":
            raise InputError(f"{key}.train: with {key}.adapter, its `save` names the modules that are trained whole.")
        _add_lora(model, adapter, key)
        trained = adapter.save
    elif train == "all":
        return
    else:
        trained = [] if train == "head" else train
    own = own_names(model)
    asked = f"{key}.train" if adapter is None else f"{key}.adapter.save"
    for path in trained:
        if not any(_within(name, path) or _within(short, path) for name, short in own.items()):
            have = dict.fromkeys(short.split(".")[0] for short in own.values())
            raise InputError(
                f"{asked}: the model has no module {on_one_line(path, 100)!r}; it has {some([*have], 20)}."
            )

    def changes(name: str) -> bool:
        if "lora_" in name:
            return "lora_A" not in name or not (adapter and adapter.freeze_a)
        return name.startswith(("classifier.", "head.")) or any(
            _within(one, path) for path in trained for one in (name, own[name])
        )

    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    trainable = {id(tensor) for name, tensor in tensors if changes(name)}  # also under another name
    _freeze(model, [name for name, tensor in tensors if id(tensor) not in trainable])


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _add_lora(model: nn.Module, adapter: Lora, key: str) -> None:
    """Put adapters beside layers of a model, in place; draws from torch's default stream."""
    with extra(f"{key}.adapter"):
        import peft
    body: Any = getattr(model, "trunk", model).features
    if not isinstance(body, nn.Module):
        raise InputError(f"{key}.adapter: the model's `features` must be a module.")
    config = peft.LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=list(adapter.targets)
    )
    try:
        peft.inject_adapter_in_model(config, body)
    except ValueError as error:
        layers = [n for n, one in body.named_modules() if isinstance(one, nn.Linear | nn.Conv2d | nn.Embedding)]
        ends = dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers)
        raise InputError(
            f"{key}.adapter.targets = {list(adapter.targets)}: {on_one_line(str(error), 200)} The ends of the names of "
            f"its layers: {some([*ends], 20)}."
        ) from error


def _freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Make parameters and buffers frozen. A module with running statistics among them stays in eval mode."""
    for name in names:
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = module._parameters.pop(last, None)
        if parameter is not None:
            module.register_buffer(last, parameter.requires_grad_(False), persistent=False)
        else:
            module._non_persistent_buffers_set.add(last)
        if last == "running_mean":
            module.register_forward_pre_hook(_in_eval_mode)
            # `load_state_dict` would miss its counter otherwise; eval mode does not read this
            module.track_running_stats = False  # type: ignore[assignment]
    model.fedkd_frozen = tuple(names)  # type: ignore[assignment]


def _in_eval_mode(module: nn.Module, _: Any) -> None:
    module.training = False


def frozen_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a built model's frozen tensors."""
    names: tuple[str, ...] = getattr(model, "fedkd_frozen", ())
    return names


@torch.no_grad()
def frozen_hash(model: nn.Module) -> str:
    """Return a hash of a built model's frozen tensors: names, types, shapes and bytes; empty if none is frozen."""
    tensors, names = dict(model.named_buffers(remove_duplicate=False)), frozen_names(model)
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(names):
        tensor = tensors[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if names else ""


@torch.no_grad()
def copy_frozen(model: nn.Module, source: nn.Module) -> None:
    """Give a model the frozen tensors of another one of its architecture."""
    mine, other = (dict(one.named_buffers(remove_duplicate=False)) for one in (model, source))
    for name in frozen_names(model):
        mine[name].copy_(other[name])

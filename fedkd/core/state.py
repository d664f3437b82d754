"""The server's state: saves the declared fields of a strategy as tensors and JSON, and restores them."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, described, some
from ..messages.arrays import Tensors, to_cpu
from .strategy import Strategy


class State(NamedTuple):
    """Values in the form of a checkpoint: tensors by path, and a JSON description of where each tensor belongs."""

    tensors: Tensors
    form: Any


def state_of(strategy: Strategy) -> State:
    """Return a copy of the state of a strategy and of those that it wraps.

    Raises InputError, which names the field, for a value that a checkpoint cannot store.
    """
    state: dict[str, Any] = {}
    for layer in reversed(strategy.layers()):
        state = {**{name: getattr(layer, name) for name in declared(layer)}, **({"base": state} if state else {})}
    return pack(state, "the state of a strategy")


def restore_state(strategy: Strategy, state: State) -> None:
    """Restore what `state_of` returned. Raises InputError if the fields are not those of this strategy."""
    kept = unpack(state)
    for layer in strategy.layers():
        if not isinstance(kept, dict):
            raise InputError(f"The checkpoint's state of {type(layer).__name__} is {type(kept).__name__}, not a table.")
        found, names = sorted(map(str, kept.keys() - {"base"})), sorted(declared(layer))
        if found != names:
            raise InputError(
                f"The checkpoint has the fields {some(found)} for {type(layer).__name__}, but its state is "
                f"{', '.join(names)}: another version of the strategy wrote it. Run the config again in a new folder."
            )
        for name in names:
            setattr(layer, name, kept[name])
        kept = kept.get("base", {})


def declared(layer: Strategy) -> list[str]:
    """Return the names of a strategy's own state: its fields with `init=False`, without those of its base."""
    return [
        field.name
        for field in dataclasses.fields(layer)
        if not field.init
        and not isinstance(getattr(type(layer), field.name, None), property)  # a wrapper's weights belong to its base
        and not isinstance(getattr(layer, field.name), Strategy)
    ]


def pack(value: Any, what: str) -> State:
    """Return values as tensors and JSON; tensors are copies on the CPU.

    Values: tensors, NumPy arrays, numbers, texts, None, and dicts, lists, tuples and sets of them. Raises InputError,
    which names `what` and the path, for any other value.
    """
    tensors: Tensors = {}

    def form(value: Any, path: str) -> Any:
        if isinstance(value, Tensor | np.ndarray | np.generic):
            name = path
            while name in tensors:  # "a/b" may be one key, or the key "b" in the dict under "a"
                name += "'"
            if isinstance(value, Tensor):
                tensors[name] = to_cpu(value, copy=True)
                return {"tensor": name}
            tensors[name] = torch.from_numpy(np.array(value))
            return {"array": name}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, dict):
            keys = list(value)
            if not all(isinstance(key, str | int) and not isinstance(key, bool) for key in keys):
                raise InputError(f"{what}: {path or 'it'} has keys that are neither texts nor whole numbers.")
            return {"dict": [[key, form(value[key], f"{path}/{key}" if path else str(key))] for key in keys]}
        for kind, name in ((list, "list"), (tuple, "tuple"), (set, "set")):
            if isinstance(value, kind):
                items = sorted(value) if kind is set else value
                return {name: [form(item, f"{path}/{number}") for number, item in enumerate(items)]}
        raise InputError(
            f"{what}: {path} is of type {type(value).__name__}, which a checkpoint cannot store; valid are tensors, "
            "arrays, numbers, texts, None, and dicts, lists, tuples and sets of them."
        )

    return State(tensors, form(value, ""))


def unpack(state: State) -> Any:
    """Return the values that `pack` got. Raises InputError for what it never makes: the file may be a stranger's."""

    def value(form: Any) -> Any:
        if not isinstance(form, dict):
            return form
        ((kind, inner),) = form.items()
        if kind in ("tensor", "array"):
            tensor = state.tensors[inner]
            return tensor if kind == "tensor" else tensor.numpy()
        if kind == "float":
            return float(inner)
        if kind == "dict":
            return {key: value(one) for key, one in inner}
        return {"list": list, "tuple": tuple, "set": set}[kind](value(one) for one in inner)

    try:
        return value(state.form)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The checkpoint's state has another form than fedkd writes: {described(error)}.") from error


class StateWatch:
    """Finds changes that a round makes in a strategy and that a resumed run would not have."""

    def __init__(self, strategy: Strategy) -> None:
        self._before = [
            (
                layer,
                {name: (value, _contents(value)) for name, value in vars(layer).items() if name not in declared(layer)},
            )
            for layer in strategy.layers()
        ]

    def check(self, number: int) -> None:
        """Raise InputError if a round has set an attribute that is not state, or changed a hyper-parameter."""
        for layer, before in self._before:
            kind, state = type(layer).__name__, declared(layer)
            hyper_parameters = {field.name for field in dataclasses.fields(layer) if field.init}
            for name, value in vars(layer).items():
                if name in state or isinstance(getattr(type(layer), name, None), cached_property | property):
                    continue
                if name in before and _is_unchanged(value, *before[name]):
                    continue
                if name in hyper_parameters:
                    raise InputError(
                        f"Round {number} changed {kind}.{name}, a hyper-parameter: a resumed run would start from the "
                        f"config's value again. Declare another field for the value that changes: {_field_of(value)}"
                    )
                raise InputError(
                    f"Round {number} set {kind}.{name}, which is not declared: a resumed run would not have it. "
                    f"Declare it in the class: {name}{_field_of(value)}"
                )


def _contents(value: Any) -> State | None:
    """Return a copy of a value that can be changed in place; None of any other, and where it cannot be copied so."""
    if not isinstance(value, list | dict | set | Tensor | np.ndarray):
        return None
    try:
        return pack(value, "")
    except InputError:
        return None


def _is_unchanged(value: Any, before: Any, contents: State | None) -> bool:
    if contents is not None:
        now = _contents(value)
        return (
            now is not None
            and now.form == contents.form
            and all(map(torch.equal, *(s.tensors.values() for s in (now, contents))))
        )
    return value is before or (isinstance(value, bool | int | float | str) and value == before)


def _field_of(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, dict | list | set):
        return f": {kind} = field(default_factory={kind}, init=False)"
    if isinstance(value, bool | int | float | str):
        return f": {kind} = field(default={type(value)()!r}, init=False)"
    return f": {kind} | None = field(default=None, init=False)"

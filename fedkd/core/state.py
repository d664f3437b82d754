"""The server's state: the declared fields of a strategy, as tensors and JSON that a checkpoint keeps, and back."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..messages.arrays import Tensors
from .strategy import Strategy


class State(NamedTuple):
    """Values as a checkpoint keeps them: tensors by their path, and the form that they are put back into, for JSON."""

    tensors: Tensors
    form: Any


def state_of(strategy: Strategy) -> State:
    """Return a copy of what a strategy, and those that it wraps, keep between rounds.

    Raises InputError, naming the field, for a value that a checkpoint cannot keep.
    """
    state: dict[str, Any] = {}
    for layer in reversed(strategy.layers()):
        state = {**{name: getattr(layer, name) for name in declared(layer)}, **({"base": state} if state else {})}
    return pack(state, "the state of a strategy")


def restore_state(strategy: Strategy, state: State) -> None:
    """Put back what `state_of` returned. Raises InputError where a checkpoint has another strategy's fields."""
    kept: dict[str, Any] = unpack(state)
    for layer in strategy.layers():
        found, names = sorted(kept.keys() - {"base"}), sorted(declared(layer))
        if found != names:
            raise InputError(
                f"The checkpoint has the state {', '.join(found)} of {type(layer).__name__}, whose state is "
                f"{', '.join(names)}: another version of the strategy wrote it. Run the config again in a new folder."
            )
        for name in names:
            setattr(layer, name, kept[name])
        kept = kept.get("base", {})


def declared(layer: Strategy) -> list[str]:
    """Return the names of a strategy's own state: its fields with `init=False`, but for what it wraps."""
    return [
        field.name
        for field in dataclasses.fields(layer)
        if not field.init
        and not isinstance(getattr(type(layer), field.name, None), property)  # a wrapper's weights are its base's
        and not isinstance(getattr(layer, field.name), Strategy)
    ]


def pack(value: Any, what: str) -> State:
    """Return values as tensors and JSON; tensors are copies on the CPU.

    Values: tensors, NumPy arrays, numbers, texts, None, and dicts, lists, tuples and sets of them. Raises InputError,
    naming `what` and the path, for any other.
    """
    tensors: Tensors = {}

    def form(value: Any, path: str) -> Any:
        if isinstance(value, Tensor | np.ndarray | np.generic):
            name = path
            while name in tensors:  # "a/b" may be a key, or a key within another one
                name += "'"
            if isinstance(value, Tensor):
                tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
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
            f"{what}: {path} holds {type(value).__name__}, which a checkpoint cannot keep; valid are tensors, arrays, "
            "numbers, texts, None, and dicts, lists, tuples and sets of them."
        )

    return State(tensors, form(value, ""))


def unpack(state: State) -> Any:
    """Return the values that `pack` took."""

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

    return value(state.form)


class StateWatch:
    """Finds what rounds change in a strategy and a resumed run would not have."""

    def __init__(self, strategy: Strategy) -> None:
        self._before = [(layer, dict(vars(layer))) for layer in strategy.layers()]

    def check(self, number: int) -> None:
        """Raise InputError where a round has set an attribute that is no state, or changed a hyper-parameter."""
        for layer, before in self._before:
            kind, state = type(layer).__name__, declared(layer)
            hyper_parameters = {field.name for field in dataclasses.fields(layer) if field.init}
            for name, value in vars(layer).items():
                if name in state or isinstance(getattr(type(layer), name, None), cached_property | property):
                    continue
                if name in before and (value is before[name] or _equal(value, before[name])):
                    continue
                if name in hyper_parameters:
                    raise InputError(
                        f"Round {number} changed {kind}.{name}, a hyper-parameter: a resumed run would start from the "
                        f"config's value again. Declare a field of its own for what changes: {_field_of(value)}"
                    )
                raise InputError(
                    f"Round {number} set {kind}.{name}, which is not declared: a resumed run would not have it. "
                    f"Declare it in the class: {name}{_field_of(value)}"
                )


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, bool | int | float | str) and type(one) is type(other) and one == other


def _field_of(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, dict | list | set):
        return f": {kind} = field(default_factory={kind}, init=False)"
    if isinstance(value, bool | int | float | str):
        return f": {kind} = field(default={type(value)()!r}, init=False)"
    return f": {kind} | None = field(default=None, init=False)"

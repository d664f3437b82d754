"""Finds objects by name (entry points, `package.module:Name`, `path/to/file.py:Name`) and checks their options."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic

from .errors import InputError, unknown


def names(group: str) -> list[str]:
    """Return the names that the installed packages register under `fedkd.<group>`."""
    return sorted({point.name for point in entry_points(group=f"fedkd.{group}")})


def find(group: str, name: str, key: str) -> Any:
    """Return the object with a name; `key` is the config key whose value is this name.

    `name` is an entry point of `fedkd.<group>`, a `package.module:Name` or a `path/to/file.py:Name`.
    Raises InputError with the nearest valid name, or with the names that the file defines.
    """
    if ":" in name:
        where, attribute = name.rsplit(":", 1)
        module = _load_file(Path(where), key) if where.endswith(".py") else _load_module(where, key)
        if not hasattr(module, attribute):
            own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
            raise InputError(f"{key}: {where} has no {attribute!r}; it defines: {', '.join(sorted(own)) or 'nothing'}.")
        return getattr(module, attribute)
    for point in entry_points(group=f"fedkd.{group}"):
        if point.name == name:
            return point.load()
    raise unknown(key, name, names(group))


def _load_module(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{key}: cannot import {name!r}: {error}.") from error


_plugin_folders: list[Path] = []


def look_for_plugins_in(folder: Path) -> None:
    """Search this folder, such as a Flower App's, for a relative `path/to/file.py:Name` before the current folder."""
    if folder not in _plugin_folders:
        _plugin_folders.append(folder)


def _load_file(path: Path, key: str) -> ModuleType:
    path = next((f / path for f in _plugin_folders if (f / path).is_file()), path).resolve()
    # one name for each path: what is pickled by reference here is found again in another process with the same file
    name = "fedkd_file_" + hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise InputError(f"{key}: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{key}: {path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def options(
    function: Callable[..., Any], table: Mapping[str, Any], key: str, common: Iterable[str] = ()
) -> dict[str, Any]:
    """Check a config table against the keyword parameters of a function or class, and return them with defaults.

    The core sets parameters that can be given by position. For a Flower strategy, the config may set all parameters.
    `common`: other keys of the table, which the caller has taken out; they are named among the valid ones.
    Raises InputError, which names the key, the value and what is valid.
    """
    # a dataclass inherits fields; their annotations must be evaluated in the modules of its base classes
    annotated = function.__init__ if inspect.isclass(function) and not dataclasses.is_dataclass(function) else function
    hints = typing.get_type_hints(annotated, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    chosen = keyword_only or [p for p in parameters if inspect.isclass(function) and p.kind is p.POSITIONAL_OR_KEYWORD]
    fields: dict[str, Any] = {p.name: (hints.get(p.name, Any), _default(function, p)) for p in chosen}
    config = pydantic.ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    model = pydantic.create_model("Options", __config__=config, **fields)
    try:
        checked = model.model_validate(dict(table))
    except pydantic.ValidationError as error:
        raise InputError(explain(error, {**fields, **dict.fromkeys(common)}, key)) from error
    return {name: getattr(checked, name) for name in fields}


def _default(function: Any, parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return ...
    field = getattr(function, "__dataclass_fields__", {}).get(parameter.name)
    if field is not None and field.default_factory is not dataclasses.MISSING:
        return pydantic.Field(default_factory=field.default_factory)
    return parameter.default


def explain(error: pydantic.ValidationError, valid: Mapping[str, Any], key: str = "") -> str:
    """Return one line for each problem: the key, its value, the error, and for an unknown key the nearest valid one."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        full = ".".join(([key] if key else []) + path)
        if problem["type"] == "extra_forbidden":
            lines.append(
                str(unknown(full, path[-1], _keys_at(valid, path[:-1]))).replace("unknown ", "unknown key ", 1)
            )
        elif problem["type"] == "missing":
            lines.append(f"{full}: is missing.")
        else:
            lines.append(f"{full} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}.")
    return "\n".join(lines)


def _keys_at(valid: Mapping[str, Any], path: list[str]) -> list[str]:
    """Return the valid keys of the table at `path`, following pydantic models."""
    fields: Mapping[str, Any] = valid
    candidates: list[Any] = []
    for part in path:
        field = fields.get(part)
        annotation = getattr(field, "annotation", field)
        found = [a for a in (annotation, *typing.get_args(annotation)) if hasattr(a, "model_fields")]
        # pydantic adds the tag of a union to the path: the name of one of the models
        candidates = found or [a for a in candidates if part in typing.get_args(a.model_fields["name"].annotation)]
        if candidates:
            fields = {name: f for model in candidates for name, f in model.model_fields.items()}
    return list(fields)

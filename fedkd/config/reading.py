"""Reads run files: TOML, `--set` overrides, error messages that name the key. Writes them with all values."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from ..errors import InputError, on_one_line
from ..registry import explain
from .distill import DistillConfig
from .run import Config
from .tables import Table

_LONGEST_KEY = 300

_TableKind = TypeVar("_TableKind", bound=Table)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML run file and apply `key=value` overrides. Raises InputError for any error in one of them."""
    return parse_config(_read_table(path, overrides), str(path))


def read_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read the TOML config file of a distillation, as `read_config` does."""
    return _parsed(DistillConfig, _read_table(path, overrides), str(path))


def _read_table(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no config file {path}.") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"{on_one_line(str(path), 200)} cannot be read: {reason}.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path} is in UTF-16, as PowerShell writes it; TOML is UTF-8: save it again as UTF-8.")
    try:
        table = _parsed_toml(content.decode("utf-8-sig"))  # without the byte order mark of some editors
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file that fedkd can read: {on_one_line(str(error))}.") from error
    return overridden(table, overrides)


def _parsed_toml(text: str) -> dict[str, Any]:
    """Return the table in a TOML text. Raises ValueError."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its lists or tables are nested too deeply") from None


def _odd_value(value: Any) -> str | None:
    """Return what makes a value unfit for any key: it could be neither written again nor used as a path."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "is too large: TOML's whole numbers have 64 bits"
    if isinstance(value, str) and any(c < " " and c not in "\t\n" for c in value):
        return "has control characters"
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return "is not valid UTF-8"
    return None


def _refuse_odd_values(table: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise InputError, which names the key, for numbers and texts that no key can have."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if (reason := _odd_value(name)) is not None:
            raise InputError(f"{source}: the key {on_one_line(repr(key), 100)} {reason}.")
        if isinstance(value, Mapping):
            _refuse_odd_values(value, source, f"{key}.")
            continue
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                _refuse_odd_values(one, source, f"{key}.")
            elif (reason := _odd_value(one)) is not None:
                raise InputError(f"{source}: {on_one_line(key, 100)} = {on_one_line(repr(one), 100)} {reason}.")


def overridden(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` overrides to a table in place, and return it. Raises InputError for a wrong override."""
    for override in overrides:
        _override(table, override)
    return table


def parse_config(table: dict[str, Any], source: str = "config") -> Config:
    """Return the config in a table. Raises InputError, which names each wrong key, its value and what is valid."""
    return _parsed(Config, table, source)


def _parsed(kind: type[_TableKind], table: dict[str, Any], source: str) -> _TableKind:
    _refuse_odd_values(table, source)
    try:
        return kind.model_validate(table)
    except pydantic.ValidationError as error:
        raise InputError(f"{source}: {explain(error, kind.model_fields)}") from error


def _override(table: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    said = f"--set {on_one_line(repr(override), 100)}"
    if not sign or not all(key.split(".")) or len(key) > _LONGEST_KEY:
        raise InputError(f"{said}: write key=value, such as strategy.beta=3.")
    try:
        value = _parsed_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    except ValueError as error:
        raise InputError(f"{said}: {on_one_line(str(error), 100)}.") from error
    *path, last = key.split(".")
    for part in path:
        inner = table.get(part, {})
        if isinstance(inner, str):  # model = "mlp" is short for model = { name = "mlp" }
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise InputError(f"{said}: {part} is {on_one_line(repr(inner), 100)}, not a table.")
        table[part] = dict(inner)
        table = table[part]
    table[last] = value


def to_table(config: Config | DistillConfig) -> dict[str, Any]:
    """Return the config as plain tables for TOML, without keys that are not set."""
    return _plain(config.model_dump(mode="json"))


def flattened(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def difference(before: dict[str, Any], now: dict[str, Any], apart: tuple[str, ...]) -> str | None:
    """Return the first key in which two configs differ, with both values. Keys that begin with `apart` may differ."""
    flat = [flattened(config) for config in (before, now)]
    for key in sorted(flat[0].keys() | flat[1].keys()):
        if flat[0].get(key) != flat[1].get(key) and not key.startswith(apart):
            return f"{key} was {flat[0].get(key)!r}, is {flat[1].get(key)!r}"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list) else value

"""Reads run files: TOML, `--set` overrides, error messages that name the key. Writes them with all values."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from ..errors import InputError
from ..registry import explain, find, options
from .distill import DistillConfig
from .run import Config
from .tables import Table

_TableKind = TypeVar("_TableKind", bound=Table)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML run file and apply `key=value` overrides. Raises InputError for any error in one of them."""
    return parse_config(_read_table(path), str(path), overrides)


def read_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read the TOML config file of a distillation, as `read_config` does."""
    return _parsed(DistillConfig, overridden(_read_table(path), overrides), str(path))


def _read_table(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"There is no config file {path}.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a TOML file that fedkd can read: {error}") from error


def overridden(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` overrides to a table in place, and return it. Raises InputError for a wrong override."""
    for override in overrides:
        _override(table, override)
    return table


def parse_config(table: dict[str, Any], source: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Return the config in a table, with `key=value` overrides.

    Raises InputError, which names each wrong key, its value and what is valid.
    """
    return _parsed(Config, _with_strategy(dict(table), overrides, source), source)


def _parsed(kind: type[_TableKind], table: dict[str, Any], source: str) -> _TableKind:
    try:
        return kind.model_validate(table)
    except pydantic.ValidationError as error:
        valid = {**kind.model_fields, **({"strategies": None} if kind is Config else {})}
        raise InputError(f"{source}: {explain(error, valid)}") from error


def _with_strategy(table: dict[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    """Apply overrides to a run's table. The strategy that is chosen then has the options that the file gives for it.

    These are in `[strategies.<name>]`, and in `[strategy]` if that has the same name. Overrides come before both, and
    `[strategy]` before `[strategies.<name>]`.
    """
    of_tables = [override for override in overrides if override.startswith("strategies.")]
    tables = overridden({"strategies": table.pop("strategies", {})}, of_tables)["strategies"]
    try:
        _check_strategies(tables)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    own = _named(table.get("strategy"))

    def choose(given: dict[str, Any]) -> None:
        name = given.get("name")
        table["strategy"] = {**tables.get(str(name), {}), **(own if own.get("name") == name else {}), **given}

    choosing = [override for override in overrides if override.partition("=")[0] in ("strategy", "strategy.name")]
    if own:
        choose(own)
    for override in choosing:
        choose(_named(overridden({}, [override])["strategy"]))
    return overridden(table, [one for one in overrides if one not in choosing and one not in of_tables])


def _named(value: Any) -> dict[str, Any]:
    """Return a strategy in a config as a table: its name alone is short for a table with this name."""
    return dict(value) if isinstance(value, dict) else {} if value is None else {"name": value}


def _check_strategies(tables: Any) -> None:
    """Raise InputError for an unknown strategy in `[strategies]`, and for options that its class does not have."""
    if not isinstance(tables, dict):
        raise InputError(f"strategies = {tables!r}: write a table for each strategy, such as [strategies.fedmd].")
    for name, table in tables.items():
        key = f"strategies.{name}"
        if not isinstance(table, dict):
            raise InputError(f"{key} = {table!r}: write a table of the options of {name}.")
        options(find("strategies", name, "strategies"), table, key)


def _override(table: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        raise InputError(f"--set {override!r}: write key=value, such as strategy.beta=3.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.split(".")
    for part in path:
        inner = table.get(part, {})
        if isinstance(inner, str):  # model = "mlp" is short for model = { name = "mlp" }
            inner = {"name": inner}
        if not isinstance(inner, dict):
            raise InputError(f"--set {override!r}: {part} is {inner!r}, not a table.")
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

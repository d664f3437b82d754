"""Reads run files: TOML, `--set` overrides, error messages that name the key. Writes them with all values."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from ..errors import InputError, on_one_line, reason_of
from ..files import read
from ..registry import explain, find, options
from .distill import DistillConfig
from .run import Config
from .tables import Table

_LONGEST_KEY = 300
_DEEPEST = 20  # tables within tables
_MOST_BYTES = 2**24  # of a file
_LONGEST_TEXT = 4096  # the longest path of Linux

_TableKind = TypeVar("_TableKind", bound=Table)


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML run file and apply `key=value` overrides. Raises InputError for any error in one of them."""
    return parse_config(read_table(path), str(path), overrides)


def read_distill_config(path: Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read the TOML config file of a distillation, as `read_config` does."""
    return parse_distill_config(overridden(read_table(path), overrides), str(path))


def parse_distill_config(table: dict[str, Any], source: str = "config") -> DistillConfig:
    """Return the config of a distillation in a table. Raises InputError as `parse_config` does."""
    return _parsed(DistillConfig, table, source)


def read_table(path: Path, home: Path | None = None) -> dict[str, Any]:
    """Return the table in a TOML file; `home`: its run folder, which may be a stranger's.

    Raises InputError for what cannot be read, and for values that no key can have.
    """
    said = on_one_line(str(path), 200)
    try:
        content = read(path, _MOST_BYTES, home)
    except FileNotFoundError:
        shipped = _shipped(path)
        if shipped is not None and home is None:
            return read_table(shipped)
        raise InputError(f"There is no config file {said}, and no config of this name comes with fedkd.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{said} cannot be read: {reason_of(error)}.") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{said} is in UTF-16, as PowerShell writes it; TOML is UTF-8: save it again as UTF-8.")
    try:
        table = _parsed_toml(content.decode("utf-8-sig"))  # without the byte order mark of some editors
    except ValueError as error:
        raise InputError(f"{said} is not a TOML file that fedkd can read: {on_one_line(str(error))}.") from error
    _refuse_odd_values(table, said)
    return table


def _shipped(path: Path) -> Path | None:
    """Return the run file that comes with fedkd under a name such as `fedmd/quick`, or None."""
    name = path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml") if path.name else path
    if len(name.parts) != 2 or ".." in name.parts:
        return None
    found = Path(str(resources.files("fedkd.configs"))) / name
    return found if found.is_file() else None


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
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"has {len(value)} characters, valid are {_LONGEST_TEXT}"
    if isinstance(value, str) and any(c < " " and c not in "\t\n" for c in value):
        return "has control characters"
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return "is not valid UTF-8"
    return None


def _shown(value: Any) -> str:
    """Return a value as short text; Python does not write out whole numbers of thousands of digits."""
    return hex(value)[:40] if isinstance(value, int) else on_one_line(repr(value), 100)


def _refuse_odd_values(table: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Raise InputError, which names the key, for numbers and texts that no key can have, and for deep tables."""
    for name, value in table.items():
        key = f"{prefix}{name}"
        if prefix.count(".") > _DEEPEST:
            raise InputError(f"{source}: the tables of {on_one_line(key, 100)} are nested too deeply.")
        if (reason := _odd_value(name)) is not None:
            raise InputError(f"{source}: the key {on_one_line(repr(key), 100)} {reason}.")
        if isinstance(value, Mapping):
            _refuse_odd_values(value, source, f"{key}.")
            continue
        if isinstance(value, list):
            _refuse_odd_values({str(place): one for place, one in enumerate(value)}, source, f"{key}.")
        elif (reason := _odd_value(value)) is not None:
            raise InputError(f"{source}: {on_one_line(key, 100)} = {_shown(value)} {reason}.")


def overridden(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `key=value` overrides to a table in place, and return it. Raises InputError for a wrong override."""
    for override in overrides:
        _override(table, override)
    return table


def parse_config(table: dict[str, Any], source: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Return the config in a table, with `key=value` overrides.

    Raises InputError, which names each wrong key, its value and what is valid.
    """
    _refuse_odd_values(table, source)
    return _parsed(Config, _with_strategy(dict(table), overrides, source), source)


def _parsed(kind: type[_TableKind], table: dict[str, Any], source: str) -> _TableKind:
    _refuse_odd_values(table, source)
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


def with_changes(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with changes. A text in place of a table is short for a table with this name."""
    found = dict(table)
    for key, value in changes.items():
        before = found.get(key)
        if isinstance(before, str) and isinstance(value, Mapping):
            before = {"name": before}
        if (
            isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and value.get("name") in (None, before.get("name"))
        ):
            found[key] = with_changes(before, value)
        elif isinstance(value, Mapping):
            found[key] = with_changes({}, value)
        else:
            found[key] = str(value) if isinstance(value, Path) else value
    return found


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
            was, now_is = (on_one_line(repr(one.get(key)), 100) for one in flat)
            return f"{on_one_line(key, 100)} was {was}, is {now_is}"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if isinstance(value, list) else value

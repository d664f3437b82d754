"""Finds objects by name (entry points, `package.module:Name`, `path/to/file.py:Name`) and checks their options."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic

from .errors import InputError, RunError, described, on_one_line, unknown
from .masking import HIDDEN, is_secret, masked

_MOST_PROBLEMS = 10  # lines of one refusal
_KIND_OF_VALUE = re.compile(r"constrained-\w+|(literal|list|dict|tuple)\[.*\]|int|float|str|bool|none", re.DOTALL)


def names(group: str) -> list[str]:
    """Return the names that the installed packages register under `fedkd.<group>`."""
    return sorted({point.name for point in entry_points(group=f"fedkd.{group}")})


def about(group: str, name: str) -> str:
    """Return the docstring of what is registered under a name, read from its file: nothing is imported."""
    for point in entry_points(group=f"fedkd.{group}"):
        if point.name == name:
            spec = find_spec(point.module)
            source = Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin else ""
            for one in ast.parse(source).body:
                if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == point.attr:
                    return ast.get_docstring(one) or ""
    return ""


def find(group: str, name: str, key: str) -> Any:
    """Return the object with a name; `key` is the config key whose value is this name.

    `name` is an entry point of `fedkd.<group>`, a `package.module:Name` or a `path/to/file.py:Name`.
    Raises InputError with the nearest valid name, with the names that the file defines, or with a missing package.
    """
    if ":" in name:
        if _app is not None:
            _app.refuse_foreign(name, key)
        where, attribute = name.rsplit(":", 1)
        module = _load_file(Path(where), key) if where.endswith(".py") else _load_module(where, key)
        with errors_of(name, key):
            there = hasattr(module, attribute)
        if not there:
            own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
            raise InputError(f"{key}: {where} has no {attribute!r}; it defines: {', '.join(sorted(own)) or 'nothing'}.")
        return getattr(module, attribute)
    for point in entry_points(group=f"fedkd.{group}"):
        if point.name == name:
            with installed(f"{key} = {name!r}"):
                return point.load()
    raise unknown(key, name, names(group))


@contextmanager
def installed(what: str) -> Iterator[None]:
    """Turn an import of a package that is not installed into InputError; `what` needs the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs the package {error.name!r}, which is not installed here.") from error


def _load_module(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InputError(f"{key}: cannot import {on_one_line(name, 100)!r}: {described(error)}.") from error


_plugin_folders: list[Path] = []  # the newest first


@dataclasses.dataclass(frozen=True)
class App:
    """A Flower App, which is all of whose code a site may run. `folder`: its files; `signed`: the texts in its config.

    What comes with a run, such as `set`, is not signed.
    """

    folder: Path
    signed: frozenset[str]

    def refuse_foreign(self, name: str, key: str) -> None:
        """Raise InputError if `name` is code that the app neither has nor names. Nothing is imported for this."""
        where, _, attribute = name.rpartition(":")
        if not attribute.isidentifier():
            return
        said = f"{key} = {on_one_line(name, 100)!r}"
        if where.endswith(".py"):
            try:
                path = (self.folder / Path(where).expanduser()).resolve()
                inside = path.is_file() and path.is_relative_to(self.folder.resolve())
            except (OSError, ValueError, RuntimeError):
                inside = False
            if not inside:
                raise InputError(f"{said}: the app has no such file, and sites run no other files than the app's.")
        elif name not in self.signed and not _is_open(where) and _is_module(where, self.folder):
            raise InputError(f"{said}: sites run only code that the app has, or that its own config names.")

    def refuse_foreign_in(self, table: Any, key: str = "") -> None:
        """Raise InputError, which names the key, if a text in nested tables is such code."""
        for name, value in table.items() if isinstance(table, Mapping) else enumerate(table):
            full = f"{key}.{name}" if key else str(name)
            if isinstance(value, str):
                self.refuse_foreign(value, full)
            elif isinstance(value, Mapping | list):
                self.refuse_foreign_in(value, full)


# what any config may name: their objects check what they are given. The last three are sets of models, not modules here
_INSTALLED = ("fedkd.strategies", "flwr.serverapp.strategy", "torchvision", "timm", "transformers")
_app: App | None = None


def _is_open(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in _INSTALLED)


def _is_module(name: str, folder: Path) -> bool:
    """Return whether there is a module with a name, outside a folder. Nothing is imported."""
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return top in sys.modules
    return spec is not None and not (spec.origin and Path(spec.origin).resolve().is_relative_to(folder.resolve()))


@contextmanager
def only_of(app: App) -> Iterator[None]:
    """Find files with a relative path in an app's folder first; inside the `with` block, find no code but the app's."""
    global _app
    if app.folder in _plugin_folders:
        _plugin_folders.remove(app.folder)
    _plugin_folders.insert(0, app.folder)
    before, _app = _app, app
    try:
        yield
    finally:
        _app = before


_PREFIX = "fedkd_file_"


def file_of(path: Path) -> Path:
    """Return the absolute path of a plug-in file, or of another file that an app has."""
    path = path.expanduser()
    return next((f / path for f in _plugin_folders if (f / path).is_file()), path).resolve()


def _module_name(path: Path) -> str:
    """Return one name for each path: what is pickled by reference is found again in another process with this file."""
    return _PREFIX + hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()


def _load_file(path: Path, key: str) -> ModuleType:
    said = on_one_line(str(path), 200)
    try:
        path = file_of(path)
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # such as a name that is too long, or no home folder
        raise InputError(f"{key} = {said!r} cannot be read: {described(error)}.") from error
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    if not there:
        raise InputError(f"{key}: there is no file {on_one_line(str(path), 200)}.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _find_neighbours_of(path)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(f"{key}: {path} cannot be loaded: {described(error)}.") from error
    return module


_neighbourhoods: list[str] = []  # the folders of loaded files: the last entries of sys.path, the newest first


def _find_neighbours_of(path: Path) -> None:
    """Let a file import its neighbours, as `python file.py` does; installed modules come first."""
    folder = str(path.parent)
    if folder in _neighbourhoods:
        return
    for name, module in list(sys.modules.items()):  # a neighbour of another file with the same name is another module
        home = os.path.dirname(getattr(module, "__file__", None) or "")
        if home in _neighbourhoods and (path.parent / f"{name}.py").is_file():
            del sys.modules[name]
    sys.path.insert(len(sys.path) - len(_neighbourhoods), folder)
    _neighbourhoods.insert(0, folder)


@contextmanager
def errors_of(name: str, key: str) -> Iterator[None]:
    """Turn what a file or package of the user raises inside the `with` block into an InputError that names it.

    So `sys.exit` in such a file is an error of that file. `key`: the config key whose value is `name`.
    """
    try:
        yield
    except (InputError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"{key} = {on_one_line(name, 100)!r} raised {described(error)}.") from error


def digests_of_files(table: Any, known: Iterable[str] = ()) -> dict[str, str]:
    """Return a hash of each code file that a config names, and of the files below their folders that they import.

    `table`: nested tables and lists whose texts may be `path/to/file.py:Name` or `package.module:Name`. Names are as in
    the config. `known`: names from an earlier call, whose files are hashed also if nothing has imported them yet.
    """
    digests: dict[str, str] = {}
    for text in texts_of(table):
        if (loaded := loaded_file(text)) is None:
            continue
        where, path = loaded
        digests[where] = _digest(path)
        for file in imported_below(path.parent) if where.endswith(".py") else ():
            digests[str(Path(where).parent / file.relative_to(path.parent))] = _digest(file)
    for name in known:
        if name not in digests and (path := file_of(Path(name))).is_file():
            digests[name] = _digest(path)
    return digests


def loaded_file(text: str) -> tuple[str, Path] | None:
    """Return the file or module that a config's text names, and its path; None if it has not been loaded as a plug-in.

    Files of fedkd and Flower do not count.
    """
    where, sign, attribute = text.rpartition(":")
    if not sign or not attribute.isidentifier():
        return None
    try:
        module = sys.modules.get(_module_name(file_of(Path(where))) if where.endswith(".py") else where)
    except (OSError, ValueError, RuntimeError):
        return None
    if module is None or module.__name__.split(".")[0] in ("fedkd", "flwr"):  # their versions are compared
        return None
    return where, Path(module.__file__ or "")


def imported_below(folder: Path) -> list[Path]:
    """Return the files of the imported modules in a plug-in's folder, at any depth; no installed packages."""
    if str(folder) not in _neighbourhoods:
        return []
    files = {
        Path(file)
        for name, module in list(sys.modules.items())
        if not name.startswith(_PREFIX) and (file := getattr(module, "__file__", None))
    }
    below = {file for file in files if file.is_relative_to(folder) and "site-packages" not in file.parts}
    return sorted(file for file in below if not file.is_relative_to(Path(__file__).parents[1]))


def texts_of(value: Any) -> Iterator[str]:
    """Yield all texts in nested tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_of(one)


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()


def options(
    function: Callable[..., Any], table: Mapping[str, Any], key: str, common: Iterable[str] = ()
) -> dict[str, Any]:
    """Check a config table against the keyword parameters of a function or class, and return them with defaults.

    The core sets parameters that can be given by position. For a Flower strategy, the config may set all parameters.
    `common`: other keys of the table, which the caller has taken out; they are named among the valid ones.
    Raises InputError, which names the key, the value and what is valid.
    """
    if not callable(function):
        raise InputError(f"{key}.name: {on_one_line(repr(function), 60)} is neither a function nor a class.")
    # a dataclass inherits fields; their annotations must be evaluated in the modules of its base classes
    annotated = function.__init__ if inspect.isclass(function) and not dataclasses.is_dataclass(function) else function
    hints = typing.get_type_hints(annotated, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    chosen = keyword_only or [p for p in parameters if inspect.isclass(function) and p.kind is p.POSITIONAL_OR_KEYWORD]
    fields: dict[str, Any] = {p.name: (hints.get(p.name, Any), _default(function, p)) for p in chosen}
    config = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True, protected_namespaces=()
    )
    try:
        model = pydantic.create_model("Options", __config__=config, **fields)
    except Exception as error:  # pydantic has several types for an annotation that it cannot check
        what = ", ".join(p.name for p in chosen if p.default is p.empty) or "its parameters"
        raise InputError(
            f"{key}: {getattr(function, '__name__', function)} needs {what}, which a config cannot give; write a "
            "file with a class that sets them."
        ) from error
    if lost := [name for name, value in table.items() if isinstance(value, str) and value == HIDDEN]:
        raise InputError(f"{key}.{lost[0]}: this secret is not in the copy of the config; write it into it again.")
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
    lines: dict[str, list[str]] = {}  # the beginning of a line, and what is wrong with a value
    for problem in error.errors():
        path, siblings = _place_of(valid, [str(part) for part in problem["loc"] if part != "[key]"])
        full = on_one_line(".".join(([key] if key else []) + path), 200)
        secret = any(is_secret(str(part)) for part in problem["loc"])
        kind, value = problem["type"], on_one_line(repr(masked(problem["input"], secret=secret)), 100)
        if kind == "extra_forbidden":
            name = on_one_line(path[-1], 100)
            line = str(unknown(full, name, siblings)).replace("unknown ", "unknown key ", 1)
        elif kind == "missing":
            line = f"{full}: is missing."
        elif kind == "union_tag_not_found":
            line = f"{full}.name: is missing."
        elif kind == "union_tag_invalid":
            line = f"{full}.name = {problem['ctx']['tag']!r}: valid: {problem['ctx']['expected_tags']}."
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            line = f"{full} = {value}: should be a table, such as {{ name = ... }}, or keys below [{full}]."
        else:
            said = f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
            if not siblings and _KIND_OF_VALUE.fullmatch(path[-1]):  # one of the kinds of value that a key may have
                full = full.rsplit(".", 1)[0]
            already = lines.setdefault(f"{full} = {value}: ", [])
            already += [said] if said not in already else []
            continue
        lines.setdefault(line, [])
    shown = [line + ", or ".join(said) + "." * bool(said) for line, said in lines.items()]
    more = [f"... and {len(shown) - _MOST_PROBLEMS} more."] if len(shown) > _MOST_PROBLEMS else []
    return "\n".join(shown[:_MOST_PROBLEMS] + more)


def _place_of(valid: Mapping[str, Any], loc: list[str]) -> tuple[list[str], list[str]]:
    """Return the keys to a problem, without the tags of unions that pydantic adds, and the valid last keys."""
    fields: Mapping[str, Any] = valid
    path: list[str] = []
    models: list[Any] = []
    for number, part in enumerate(loc):
        if len(models) > 1 and part not in fields and number < len(loc) - 1:  # the tag of a union: one model's name
            models = [a for a in models if part in typing.get_args(a.model_fields["name"].annotation)]
        else:
            path.append(part)
            if number == len(loc) - 1:
                break
            annotation = getattr(fields.get(part), "annotation", fields.get(part))
            models = [a for a in (annotation, *typing.get_args(annotation)) if hasattr(a, "model_fields")]
        fields = {name: f for model in models for name, f in model.model_fields.items()}
    return path, list(fields)

"""The contract of a strategy's class, checked before anything runs: hyper-parameters, client methods, requests."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, nearest
from .client import Client, actions
from .strategy import Strategy

_CLASS_VARIABLES = {name for name, kind in inspect.get_annotations(Strategy).items() if "ClassVar" in str(kind)}


class Asked(NamedTuple):
    """A request in a strategy's code: its action, and its file and line."""

    action: str
    where: str


def check_class(kind: type[Strategy]) -> None:
    """Raise InputError if a strategy breaks the contract: one line for each problem, with class, file and line."""
    problems = [*_field_problems(kind), *_method_problems(kind)]
    if problems:
        raise InputError("\n".join(problems))


def check_requests(strategy: Strategy) -> None:
    """Raise InputError if the client half lacks an action that a strategy asks for, or has it in another form."""
    problems = []
    for layer in strategy.layers():
        for asked in [*asked_actions(type(layer)), Asked("evaluate", _where(type(layer)))]:
            problem = _handler_problem(strategy.client_class(), asked)
            problems += [problem] if problem is not None else []
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _field_problems(kind: type[Strategy]) -> Iterator[str]:
    at, fields = _name_at(kind), {field.name for field in dataclasses.fields(kind)}
    for name, annotation in inspect.get_annotations(kind).items():
        if name in _CLASS_VARIABLES and name in fields:
            written = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
            yield f"{at}: {name} is not a hyper-parameter: write {name}: ClassVar[{written}] = ..."
        elif name not in fields and "ClassVar" not in str(annotation) and not name.startswith("_"):
            yield f"{at}: {name} is not a field yet: write @dataclass(kw_only=True) above the class."
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            yield f"{at}: {parameter.name} can be given by position: write @dataclass(kw_only=True) above the class."
        elif parameter.annotation is parameter.empty:
            yield f"{at}: the hyper-parameter {parameter.name} has no annotation: write {parameter.name}: <type>."
    annotated = {name for base in kind.__mro__ for name in inspect.get_annotations(base)}
    for name, value in vars(kind).items():
        constant = name.startswith("_") or name.isupper() or callable(value) or hasattr(value, "__get__")
        if not constant and name not in annotated and not hasattr(Strategy, name):
            yield (
                f"{at}: {name} = {value!r} has no annotation, so it is not a hyper-parameter: write "
                f"{name}: {type(value).__name__} = {value!r}, or {name}: ClassVar[...] for a constant."
            )


def _method_problems(kind: type[Strategy]) -> Iterator[str]:
    client = getattr(kind, "client", None)
    if not (isinstance(client, type) and issubclass(client, Client)):
        yield f"{_name_at(kind)}: client = {client!r}: write client: ClassVar[type[Client]] = YourClient."
    if inspect.isabstract(kind):
        yield f"{_name_at(kind)}: the class lacks {', '.join(sorted(kind.__abstractmethods__))}: write it."
    for name in ("prepare_nodes", "prepare", "run_round", "check", "evaluation", "measure", "initial_weights"):
        own = [p for p in inspect.signature(getattr(kind, name)).parameters.values() if p.default is p.empty]
        wanted = inspect.signature(getattr(Strategy, name)).parameters
        if len(own) != len(wanted):
            yield f"{_name_at(kind, name)}: {name} takes {', '.join(wanted)}."


def asked_actions(kind: type[Strategy]) -> list[Asked]:
    """Return the requests that a strategy's methods name with a string literal. This includes inherited methods.

    It looks at calls of `ask`, and of functions whose names begin with it: `x.ask("fit")`, `ask_cached(x, "fit")`.
    """
    found: dict[Asked, None] = {}
    hidden: set[str] = set()  # methods that a subclass has replaced without calling the replaced one
    for base in kind.__mro__:
        methods = {name: method for name, method in vars(base).items() if inspect.isfunction(method)}
        for name, method in methods.items():
            if name not in hidden:
                asked, calls = _read(method)
                found |= dict.fromkeys(asked)
                hidden |= set() if name in calls else {name}
    return list(found)


def _read(method: Any) -> tuple[list[Asked], set[str]]:
    """Return what a method asks for, and the methods that it calls by `super()`."""
    asked: list[Asked] = []
    calls: set[str] = set()
    try:
        lines, first = inspect.getsourcelines(method)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # without source, `ask` checks the action when the round runs
        return asked, calls
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if name.startswith("ask") and texts:
            asked.append(Asked(texts[0], f"{Path(inspect.getfile(method)).name}:{first + node.lineno - 1}"))
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "super()":
            calls.add(name)
    return asked, calls


def _handler_problem(client: type[Client], asked: Asked) -> str | None:
    if asked.action in actions(client):
        return None
    if asked.action.startswith("_") or not callable(getattr(client, asked.action, None)):
        hint = nearest(asked.action, actions(client))
        return f"{asked.where}: ask({asked.action!r}): {client.__name__} has no such method{hint}"
    method = getattr(client, asked.action)
    parameters = ", ".join(inspect.signature(method).parameters)
    return (
        f"{_name_at(client, asked.action)}: {asked.action} takes ({parameters}); a method that answers a request takes "
        f"exactly (self, request): write def {asked.action}(self, request: Payload) -> Payload."
    )


def _name_at(kind: type, method: str | None = None) -> str:
    name = kind.__name__ if method is None else f"{kind.__name__}.{method}"
    return f"{name} ({_where(kind, method)})"


def _where(kind: type, method: str | None = None) -> str:
    """Return the file and line of a class or of one of its methods, if its source is known."""
    target: Any = kind if method is None else getattr(kind, method)
    try:
        return f"{Path(inspect.getfile(target)).name}:{inspect.getsourcelines(target)[1]}"
    except (OSError, TypeError):
        return kind.__module__

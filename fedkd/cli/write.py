"""`fedkd list`, `new` and `check`: commands for authors of strategies."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError, RunError
from .common import Overrides, app, exit_codes


@app.command("list")
def list_names(
    what: Annotated[
        Literal["strategies", "models", "datasets", "partitions", "engines", "distillers", "trackers"],
        typer.Argument(),
    ],
    data: Annotated[
        Literal["image", "table", "series", "tokens", "array"] | None,
        typer.Option(help="Only strategies, or models, that serve samples of this kind."),
    ] = None,
    task: Annotated[
        Literal["classification", "multilabel", "regression"] | None,
        typer.Option(help="Only strategies that serve this task."),
    ] = None,
) -> None:
    """Print the names that a config can use."""
    from ..registry import find, names

    more = {
        "strategies": ["path/to/file.py:Class", "flwr.serverapp.strategy:<Class>"],
        "models": ["torchvision:<name>", "timm:<name>", "transformers:<folder>", "path/to/file.py:function"],
        "datasets": [
            "path/to/file.py:function",
            "npz:<file>",
            "images:<folder>",
            "cifar10c:<corruption>",
            "any <name> with a file <data.root>/<name>.npz",
        ],
        "partitions": ["path/to/file.py:function"],
        "engines": ["path/to/file.py:Class"],
        "distillers": ["path/to/file.py:Class"],
        "trackers": ["path/to/file.py:Class"],
    }
    if data is not None and what not in ("strategies", "models"):
        raise InputError(f"--data {data}: it is for strategies and models.")
    if task is not None and what != "strategies":
        raise InputError(f"--task {task}: it is for strategies.")
    for name in names(what):
        found = find(what, name, what) if data or task else None
        of_kind = data is None or data in getattr(found, "kinds", (data,))
        if of_kind and (task is None or task in getattr(found, "tasks", (task,))):
            typer.echo(name)
    for name in more[what]:
        typer.echo(name)


new = typer.Typer(help="Files to start from.", no_args_is_help=True)
app.add_typer(new, name="new")


@new.callback()
def _new() -> None:
    """Keep `strategy` a subcommand: typer would merge a single command into its parent."""


@new.command("strategy")
def new_strategy(
    name: Annotated[str, typer.Argument(help="The class, such as FedMine; the file is named after it.")],
) -> None:
    """Write a file with a strategy that runs and passes `fedkd check`; change it into your strategy."""
    with exit_codes("nothing is written"):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
            raise InputError(f"{name!r} is not a name of a class: write letters and digits, such as FedMine.")
        kind = name[0].upper() + name[1:]
        path = Path(f"{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', kind).lower()}.py")
        if path.exists():
            raise InputError(f"{path} exists already; choose another name, or move the file.")
        text = files("fedkd.cli").joinpath("new_strategy.py.txt").read_text(encoding="utf-8")
        path.write_text(text.replace("NewStrategy", kind), encoding="utf-8")
        typer.echo(f"written: {path}")
        typer.echo(f"check it: fedkd check {path}:{kind}")
        typer.echo(f"run it: fedkd run CONFIG --set strategy={path}:{kind}, with a config of yours or of configs/")


@app.command()
def check(
    strategy: Annotated[str, typer.Argument(help="A strategy, such as mine.py:FedMine or knfu.")],
    overrides: Overrides = None,
) -> None:
    """Check what fedkd promises of every strategy, on a tiny federation: a minute."""
    with exit_codes("nothing is written"):
        import logging

        from ..config import overridden
        from ..testing import outcomes

        logging.getLogger("flwr").setLevel(logging.ERROR)
        logging.getLogger("fedkd").setLevel(logging.ERROR)
        table = overridden({"strategy": {"name": strategy}}, overrides or [])
        hyper_parameters = table.pop("strategy")
        broken = 0
        for promise, problem in outcomes(hyper_parameters.pop("name"), table, **hyper_parameters):
            broken += problem is not None
            typer.echo(f"{'ok' if problem is None else 'BROKEN'}: {promise}" + (f": {problem}" if problem else ""))
        if broken:
            raise RunError(f"{strategy} breaks {broken} of fedkd's promises, as said above.")

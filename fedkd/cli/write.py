"""`fedkd list`, `init`, `new` and `check`: commands for authors of strategies and studies."""

from __future__ import annotations

import re
import shlex
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError, RunError, reason_of
from ..files import write_output
from .common import Overrides, app, exit_codes


@app.command("list")
def list_names(
    what: Annotated[
        Literal["strategies", "models", "datasets", "partitions", "engines", "distillers", "kd_losses", "trackers"],
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
    """Print the names that a config can use, each with a line on what it is."""
    from ..registry import about, find, names

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
        "kd_losses": ["path/to/file.py:Class"],
        "trackers": ["path/to/file.py:Class"],
    }
    if data is not None and what not in ("strategies", "models"):
        raise InputError(f"--data {data}: it is for strategies and models.")
    if task is not None and what != "strategies":
        raise InputError(f"--task {task}: it is for strategies.")
    shown = []
    for name in names(what):
        found = find(what, name, what) if data or task else None
        of_kind = data is None or data in getattr(found, "kinds", (data,))
        if of_kind and (task is None or task in getattr(found, "tasks", (task,))):
            shown.append((name, _sentence(about(what, name))))
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        typer.echo(f"{name:{width}}  {text}".rstrip())
    for name in more[what]:
        typer.echo(name)


def _sentence(docstring: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    text = " ".join(docstring.split("\n\n")[0].split())
    first = re.match(r".+?\.(?= [A-Z]|$)(?<! al\.)", text)
    sentence = (first[0] if first else text).removeprefix("Return ").rstrip(".")
    return textwrap.shorten(sentence[:1].upper() + sentence[1:], 110, placeholder=" ...")


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The new folder, such as my-study.")],
) -> None:
    """Write a folder to start a study from: a run file, a strategy, a README with the commands."""
    with exit_codes("nothing is written"):
        folder = Path(name)
        if not re.fullmatch(r"[\w][\w.-]*", folder.name) or folder.name in ("", ".", ".."):
            raise InputError(f"{name!r} is no name of a folder: write letters, digits and -, such as my-study.")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists already and is not empty; choose another name.")
        texts = {
            "config.toml": _template("new_study.toml.txt"),
            "method.py": _template("new_strategy.py.txt").replace("NewStrategy", "Mine"),
            "README.md": _template("new_study.md.txt").replace("STUDY", folder.name),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {reason_of(error)}.") from error
        for file, text in texts.items():
            write_output(folder / file, text.encode())
        typer.echo(f"written: {', '.join(str(folder / file) for file in texts)}")
        typer.echo(f"next: cd {shlex.quote(str(folder))} && fedkd run config.toml")


def _template(name: str) -> str:
    return files("fedkd.cli").joinpath(name).read_text(encoding="utf-8")


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
        path.write_text(_template("new_strategy.py.txt").replace("NewStrategy", kind), encoding="utf-8")
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

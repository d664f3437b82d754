"""The forms of a run's files: what anyone who reads one may rely on, and what is wrong with a file that has another."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import on_one_line
from ..files import parse_json, read

MOST_BYTES = 2**26  # of a file of a run, but for its lines
_MOST_OF_LINES = 2**31
_LARGEST = 1e100  # of a number: sums and squares stay finite


def _bounded(value: float | None) -> float | None:
    if value is not None and _LARGEST < abs(value) < float("inf"):
        raise ValueError("too large")
    return value


def _numbered(nodes: dict[str, float]) -> dict[str, float]:
    if not all(node.isascii() and node.isdecimal() and len(node) < 10 for node in nodes):
        raise ValueError("a node is a number")
    return nodes


# one line without control characters
Name = Annotated[str, StringConstraints(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]{1,200}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float | None, AfterValidator(_bounded)]  # null: a measured value that is not finite
Seconds = Annotated[float, Field(ge=0, le=_LARGEST, allow_inf_nan=False)]


class Form(BaseModel):
    """A table with these fields and perhaps others."""

    model_config = ConfigDict(strict=True)


class _Spread(Form):
    std: Number


class _Sizes(Form):
    model_config = ConfigDict(strict=True, extra="forbid")
    up: dict[Name, Count]
    down: dict[Name, Count]


class _Times(Form):
    model_config = ConfigDict(strict=True, extra="forbid")
    round: Seconds
    evaluation: Seconds


class Line(Form):
    """A line of metrics.jsonl."""

    round: Count
    cohort: list[Count]
    metrics: dict[Name, Number]
    spread: dict[str, _Spread]
    nodes: dict[Name, Annotated[dict[str, Number], AfterValidator(_numbered)]]
    bytes: _Sizes
    evaluation_bytes: _Sizes
    failures: list[dict[str, Any]]
    events: list[dict[str, Any]]
    log: dict[Name, Any]
    seconds: _Times


class DistillLine(Form):
    """A line of metrics.jsonl of a distillation. `networks`: the metrics of each network on which it was measured."""

    iteration: Count
    metrics: dict[Name, Number]
    networks: dict[Name, list[Number]] = {}
    seconds: Seconds


class _Strategy(Form):
    name: str


class RunConfig(Form):
    """What is read from the config.toml of a run."""

    seed: int
    rounds: int
    strategy: _Strategy
    data: dict[str, Any]


class Summary(Form):
    """What is read from a summary.json."""

    status: Name
    versions: dict[Name, Name]


class Partition(Form):
    """A partition.json: the classes, and the number of samples of each, nodes x classes.

    `sizes`: each node's number of samples, which may have several labels each; `nodes`: their names, if they have some;
    `noun`: what several samples are called; `columns`: what a column is, such as a class.
    """

    classes: list[str]
    counts: list[list[Count]]
    sizes: list[Count] = []
    nodes: list[str] = []
    noun: str = "samples"
    columns: str = "class"


class SamplesFile(Form):
    """A samples.json: how samples are encoded, as `fedkd describe` writes it, and for whom.

    `padded`: whether series or texts may be shorter than models get them.
    """

    samples: str
    nodes: Annotated[int, Field(ge=1, le=10**8)]
    node_classes: list[str]
    padded: bool


class _OfClass(Form):
    samples: Count
    precision: Number
    recall: Number
    f1: Number
    auc: Number


class _Bin(Form):
    samples: Count
    confidence: Number
    accuracy: Number


class _Scores(Form):
    samples: Count
    accuracy: Number
    balanced_accuracy: Number
    macro_f1: Number
    auc: Number
    ece: Number
    confusion: list[list[Count]]
    classes: list[_OfClass]
    calibration: list[_Bin]
    nodes: Count | None = None


class Evaluation(Form):
    """An evaluation.json: the classes, and the scores of each model (see `scores.scores`); `nodes`: how many models."""

    classes: list[str]
    models: dict[Name, _Scores]


class OriginFile(Form):
    """An origin.json; `changes` are the accepted ones."""

    images: str | None = None
    partition: str | None = None
    files: dict[str, str]
    versions: dict[str, str] = {}
    changes: list[dict[str, Any]] = []


class _File(Form):
    digest: str
    size: Count


class About(Form):
    """A checkpoint.json: the round, the run that wrote it, and the files that belong to it."""

    round: Count
    owner: dict[str, Any]
    files: dict[str, _File]


def wrong_fields(form: type[BaseModel], found: Any, where: str = "") -> list[str]:
    """Return a text for each field that is missing or has another type, under the name `where`."""
    try:
        form.model_validate(found)
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            key = on_one_line(where + ".".join(map(str, one["loc"])), 100).strip(".") or "it"
            wrong.append(f"without {key}" if one["type"] == "missing" else f"{key} is {_shown(one['input'])}")
        return wrong[:10] + ([f"and {len(wrong) - 10} more"] if len(wrong) > 10 else [])
    return []


def _shown(value: Any) -> str:
    return on_one_line(repr(value), 60)


def read_form(path: Path, form: type[BaseModel], home: Path) -> dict[str, Any]:
    """Return the table in a JSON file of a run folder `home`. Raises ValueError or OSError with the reason."""
    found: dict[str, Any] = parse_json(read(path, MOST_BYTES, home))
    if wrong := wrong_fields(form, found):
        raise ValueError(", ".join(wrong))
    return found


def read_lines(path: Path, form: type[Line | DistillLine] = Line) -> tuple[list[dict[str, Any]], str | None]:
    """Return the lines of a metrics.jsonl before the first damaged one, and what is wrong with that one.

    An incomplete last line is passed over: it may be in the process of writing. No file is no lines. Raises ValueError
    or OSError for a file that cannot be read.
    """
    *texts, rest = read(path, _MOST_OF_LINES, path.parent).split(b"\n") if os.path.lexists(path) else [b""]
    lines: list[dict[str, Any]] = []
    for number, text in enumerate([*texts, rest] if rest else texts, 1):
        try:
            line = parse_json(text)
            wrong = wrong_fields(form, line)
        except ValueError as error:
            if number > len(texts):
                return lines, None
            return lines, f"line {number} of {path.name} is damaged: {on_one_line(str(error), 100)}"
        if wrong:
            return lines, f"line {number} of {path.name} has another form: {', '.join(wrong)}"
        if form is Line and line["round"] != len(lines):
            return lines, f"{path.name} has round {line['round']} instead of round {len(lines)}, in line {number}"
        if form is DistillLine and lines and line["iteration"] <= lines[-1]["iteration"]:
            return lines, f"{path.name} has iteration {line['iteration']} twice, or too late, in line {number}"
        lines.append(_with_nan(line))
    return lines, None


def _with_nan(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line in which measured values that are null are NaN again."""
    if None in line["metrics"].values():
        line["metrics"] = _as_numbers(line["metrics"])
    line.update(
        {key: {m: _as_numbers(one) for m, one in line[key].items()} for key in ("nodes", "spread") if key in line}
    )
    return line


def _as_numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}

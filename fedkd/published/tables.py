"""Published tables, a file `table.toml` each: the figures of the paper and of its code, and how to run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from ..config import (
    Config,
    Count,
    Fraction,
    NotNegative,
    Probability,
    Whole,
    parse_config,
    read_table,
    with_changes,
)
from ..config.tables import Metric, Table
from ..errors import InputError, some, unknown
from ..registry import explain

TABLE = "table.toml"
Form = Literal["published", "corrected"]


class Figure(Table):
    """A published number: in percent, or in rounds. `spread` as its source has it; `by`: who has reported it."""

    value: float
    spread: NotNegative | None = None
    by: str | None = None


class Reading(Table):
    """How a table's number is read from the curve of a metric.

    Rounds outside of `first` to `last` do not count. `count` belongs to best_rounds and last_rounds, `decay` to
    moving_average, `target` to crossing, `beside`, the metric of the rule that is tested first, to running_pools, `of`,
    the metric whose best round is read, to at_best.
    `spread`: the deviation over runs (sample), over all numbers of all runs, or within a run (population; the mean over
    runs).
    """

    name: Literal[
        "last", "best", "best_rounds", "last_rounds", "moving_average", "crossing", "nodes", "running_pools",
        "at_best", "best_of_nodes", "networks",
    ]  # fmt: skip
    metric: Metric
    first: Whole = 0
    last: Whole | None = None
    count: Count | None = None
    decay: Fraction | None = None
    target: Probability | None = None
    beside: Metric | None = None
    of: Metric | None = None
    spread: Literal["runs", "numbers", "within"] = "runs"

    @pydantic.model_validator(mode="after")
    def _own_options(self) -> Reading:
        homes = {
            "count": ("best_rounds", "last_rounds"), "decay": ("moving_average",), "target": ("crossing",),
            "beside": ("running_pools",), "of": ("at_best",),
        }  # fmt: skip
        for key, named in homes.items():
            if (getattr(self, key) is not None) != (self.name in named):
                raise ValueError(f"{key} belongs to name = {' or '.join(map(repr, named))}, which needs it")
        return self

    @property
    def unit(self) -> Literal["percent", "rounds"]:
        """Return what the number counts."""
        return "rounds" if self.name == "crossing" else "percent"

    def text(self) -> str:
        """Return the reading in words."""
        said = {
            "last": "the last round", "best": "the best round", "best_rounds": f"mean of the {self.count} best rounds",
            "last_rounds": f"mean of the {self.count} last rounds",
            "moving_average": f"a moving average ({self.decay}) at the end",
            "nodes": "each node's value in the last round",
            "at_best": f"the round that is best by {self.of}: the value",
            "best_of_nodes": "mean over nodes of each one's best round",
            "networks": "each network's value after the last iteration",
            "running_pools": f"pooled over the nodes so far and over {self.beside}, in the last round",
            "crossing": f"the round in which the best value so far reaches {self.target}, interpolated",
        }[self.name]  # fmt: skip
        within = f", rounds {self.first} to {self.last}" if self.last is not None else ""
        return f"{said} of {self.metric}{within}"


class Grid(Table):
    """The values of one dotted key of the config, of which a table reports the best."""

    key: str
    values: Annotated[list[Any], Field(min_length=2)]


class Start(Table):
    """Where a row's run starts: from the best model, by `checkpoint.best`, of another row's run with the same seed."""

    row: str


class Row(Table):
    """One row of a table: a method in a cell, its settings and its published figures.

    `form`: `published` runs the authors' code as it is, bugs included, and is judged; `corrected` stands beside it.
    `set`: what differs from the table's settings. `grid`: the row is the best of several settings, as in the paper.
    `runs`: the name of another row, whose runs are read in another way.
    """

    method: str
    cell: str
    form: Form = "published"
    set: dict[str, Any] = Field(default_factory=dict)
    grid: Grid | None = None
    runs: str | None = None
    start: Start | None = None
    reading: Reading | None = None
    paper: Figure | None = None
    code: Figure | None = None  # what the authors' code gives today, if that is another number
    deviations: list[str] = Field(default_factory=list)
    finding: str = ""  # why ours differs, and the experiment that shows it

    @property
    def name(self) -> str:
        """Return the name of the row, which is that of its runs' folders too."""
        words = f"{self.method}-{self.cell}" + ("" if self.form == "published" else f"-{self.form}")
        return re.sub(r"[^a-z0-9.+]+", "-", words.lower()).strip("-")


class PublishedTable(Table):
    """A published table. `settings`: of the runs of all rows; `quick`: what a trial changes in them.

    `kind`: what its runs are, federations (`fedkd run`) or distillations of a set (`fedkd distill`).
    `seeded`: dotted keys that get a run's seed, such as one of the initial weights of the authors' runs.
    """

    title: str
    kind: Literal["run", "distill"] = "run"
    paper: str
    code: str
    note: str = ""
    machine: Literal["cpu", "gpu"] = "cpu"
    seeds: Annotated[int, Field(ge=1, le=20)] = 3
    reading: Reading
    seeded: list[str] = Field(default_factory=list)
    settings: dict[str, Any]
    quick: dict[str, Any]
    deviations: list[str] = Field(default_factory=list)
    rows: Annotated[list[Row], Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _one_of_each(self) -> PublishedTable:
        names = [row.name for row in self.rows]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two rows are called {twice[0]!r}")
        for row in self.rows:
            if row.runs is not None and (row.runs not in names or row.set or row.grid is not None):
                raise ValueError(f"runs = {row.runs!r} must name another row, and has no settings of its own")
        firsts = {row.name for row in self.rows if row.runs is None and row.start is None and row.grid is None}
        for row in self.rows:
            if row.start is not None and (row.start.row not in firsts or row.runs is not None):
                raise ValueError(
                    f"start.row = {row.start.row!r} of {row.name!r} must name another row, which has runs of its own, "
                    f"no start and no grid: {some(sorted(firsts), 40)}; and a row with `runs` has no start"
                )
        return self

    def source_of(self, row: Row) -> Row:
        """Return the row whose runs a row reads: itself, or the one that its `runs` names."""
        return row if row.runs is None else self.row_called(row.runs)

    def row_called(self, name: str) -> Row:
        """Return the row with a name."""
        return next(row for row in self.rows if row.name == name)

    @pydantic.model_validator(mode="after")
    def _networks_of_distillations(self) -> PublishedTable:
        if self.kind == "run" and any(self.reading_of(row).name == "networks" for row in self.rows):
            raise ValueError("reading.name = 'networks' is of distillations; set kind = \"distill\"")
        return self

    def reading_of(self, row: Row) -> Reading:
        """Return how a row is read."""
        return row.reading or self.reading

    def configs_of(self, row: Row, *, quick: bool = False, seed: int = 0, out: Path | None = None) -> dict[str, Config]:
        """Return the configs of a row's runs, as `settings_of`; of distillations see `distillations.configs_of`.

        `out`: the folder of the runs; without it a row with `start` starts from its own weights. Raises InputError for
        a wrong key.
        """
        found = self.settings_of(row, quick=quick, seed=seed, out=out)
        return {name: parse_config(table, f"{self.title}, {name}") for name, table in found.items()}

    def settings_of(
        self, row: Row, *, quick: bool = False, seed: int = 0, out: Path | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the settings of a row's runs with a seed, by the name of their folders without the seed.

        It is one, or one for each value of the row's grid.
        """
        row = self.source_of(row)
        table = with_changes(with_changes(self.settings, row.set), self.quick if quick else {})
        for key in ["seed", *self.seeded]:
            table = with_changes(table, _nested(key, seed))
        if row.start is not None and out is not None:
            table = with_changes(table, _nested("model.weights", str(start_file(out, row.start, seed))))
        if row.grid is None:
            return {row.name: table}
        found, key = {}, row.grid.key
        for value in row.grid.values:
            name = f"{row.name},{key.rsplit('.', 1)[-1]}={value}"
            found[name] = with_changes(table, _nested(key, value))
        return found

    def chosen(self, patterns: Sequence[str]) -> list[Row]:
        """Return the rows whose name, method or cell fits one of the patterns (`*` for any text); all without patterns.

        Raises InputError for a pattern that fits no row.
        """
        found: list[Row] = []
        for pattern in patterns:
            fitting = [
                row for row in self.rows if any(fnmatchcase(x, pattern) for x in (row.name, row.method, row.cell))
            ]
            if not fitting:
                raise InputError(
                    f"--rows {pattern!r} fits no row; they are: {some([row.name for row in self.rows], 40)}."
                )
            found += fitting
        return [row for row in self.rows if row in found] if patterns else list(self.rows)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def run_name(setting: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{setting},seed={seed}"


def start_file(out: Path, start: Start, seed: int) -> Path:
    """Return the file of the model from which runs with a seed start; `out`: the folder of the runs."""
    return out.resolve() / "starts" / f"{run_name(start.row, seed)}.safetensors"


def home() -> Path:
    """Return the folder of the tables that come with fedkd."""
    return Path(str(resources.files("fedkd.configs"))) / "published"


def names() -> list[str]:
    """Return the names of the tables that come with fedkd."""
    return sorted(path.parent.name for path in home().glob(f"*/{TABLE}"))


def read(name: str) -> PublishedTable:
    """Return the table with a name, or in a file `table.toml` of one's own. Raises InputError for a wrong one."""
    path = Path(name) if name.endswith(".toml") else home() / name / TABLE
    if not name.endswith(".toml") and name not in names():
        raise unknown("table", name, names())
    try:
        return PublishedTable.model_validate(read_table(path))
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {explain(error, PublishedTable.model_fields)}") from error

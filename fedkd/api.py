"""The Python interface: runs, their results and models, and comparisons; the same as on the command line.

```python
import fedkd
run = fedkd.run("fedmd/quick", rounds=5)
run.metrics, run.summary, run.figures["accuracy"]
model = run.model(node=3)
model.predict(images)
```
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config, flattened, parse_config, read_config, read_table, to_table, with_changes
from .core.record import Record
from .errors import InputError
from .exports.of_run import Which, model_after, model_of_run, real_samples
from .exports.trained import TrainedModel
from .messages.metric_names import as_text
from .reports import tables as printed
from .reports.compare import Comparison, split
from .reports.compare import compare as comparing
from .runs import run as runs
from .runs.figures import figures_of
from .runs.progress import NotebookProgress, Progress, in_notebook
from .runs.results import completed, find_runs, read_run
from .runs.run import RoundEnd
from .runs.run_folder import CONFIG, run_folder_of
from .runs.styles import SCREEN, content_of, in_style

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

AnyConfig = Config | Mapping[str, Any] | str | Path


def make_config(source: AnyConfig, **changes: Any) -> Config:
    """Return a config: of a run file, of a name that comes with fedkd (`fedmd/quick`), of a table, or of a config.

    `changes`: keys with other values; tables are merged: `strategy={"beta": 3.0}` changes one option. A table with
    another `name` replaces the whole one. Raises InputError, which names each wrong key.
    """
    if isinstance(source, Config):
        table, said = to_table(source), "config"
    elif isinstance(source, Mapping):
        table, said = dict(source), "config"
    else:
        table, said = read_table(Path(source).expanduser()), str(source)
    return parse_config(with_changes(table, changes), said)


def run(source: AnyConfig, *, out: str | Path | None = None, show: bool = True, **changes: Any) -> Run:
    """Run a federation to its end; return the run.

    `source`, `changes`: see `make_config`. `out`: the run folder; by default a new one in runs/. `show`: the progress.
    Ctrl-C leaves a run that `resume` continues. Raises InputError for input that is refused, RunError for a run that
    cannot continue.
    """
    parsed = make_config(source, **changes)
    path = Path(out).expanduser() if out is not None else run_folder_of(parsed)
    with _shown(show, path) as progress:
        runs.run(parsed, path, progress.update, progress.step, progress.line)
    return Run(path)


def resume(path: str | Path | Run, *, show: bool = True, accept_changes: bool = False, **changes: Any) -> Run:
    """Continue the run in a folder from its last checkpoint; return the run.

    `changes`: keys that a run may change, such as `rounds=50`. `accept_changes`: go on although data, files or versions
    have changed since the run began, and record it. Raises like `run`.
    """
    folder = path.path if isinstance(path, Run) else Path(path).expanduser()
    overrides = [f"{key}={_as_toml(value)}" for key, value in flattened(with_changes({}, changes)).items()]
    with _shown(show, folder) as progress:
        runs.resume(
            folder, progress.update, progress.step, progress.line, overrides=overrides, accept_changes=accept_changes
        )
    return Run(folder)


def _as_toml(value: Any) -> str:
    import tomli_w

    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()


@contextmanager
def _shown(show: bool, path: Path) -> Iterator[Progress]:
    """Show the progress of a run; after an interrupt say how it can be continued."""
    stream = sys.stderr if show else io.StringIO()
    progress = NotebookProgress(stream) if show and in_notebook() else Progress(stream)
    try:
        with progress:
            yield progress
    except KeyboardInterrupt:
        if (path / CONFIG).exists():
            print(f"Continue with fedkd.resume({str(path)!r}).", file=sys.stderr)
        raise


class State:
    """A run after a round, as `rounds` gives it."""

    def __init__(self, ended: RoundEnd, path: Path) -> None:
        self.record: Record = ended.record
        self.path = path
        self._ended = ended

    @property
    def number(self) -> int:
        """Return the number of the round; 0 is the preparation."""
        return self.record.number

    @property
    def metrics(self) -> dict[str, float]:
        """Return what was measured after this round, by name; empty if the round is not measured."""
        return dict(self.record.metrics)

    def model(self, node: int | None = None) -> TrainedModel:
        """Return the model of a node after this round, or the server's; use it before the next round begins."""
        states = dict(self._ended.states)
        return model_after(self._ended.setup, states.get, self.path, self.number, node)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {as_text(name, value)}" for name, value in self.metrics.items())
        return f"round {self.number}: {shown or 'not measured'}"


def rounds(source: AnyConfig, *, out: str | Path | None = None, **changes: Any) -> Iterator[State]:
    """Run a federation round by round: yield after each round, beginning with round 0, the preparation.

    Leave the loop to stop early: the last round is kept, and `resume` continues. Arguments and errors as of `run`.
    """
    parsed = make_config(source, **changes)
    path = Path(out).expanduser() if out is not None else run_folder_of(parsed)
    playing = runs.rounds(parsed, path)
    try:
        for ended in playing:
            yield State(ended, path)
    finally:
        playing.close()


class Run:
    """A run in its folder: its config, metrics, summary, figures and models."""

    def __init__(self, path: str | Path) -> None:
        """Open a run folder. Raises InputError for a folder without a run."""
        self.path = Path(path).expanduser()
        read_run(self.path)

    @property
    def config(self) -> Config:
        """Return the run's config."""
        return read_config(self.path / CONFIG)

    @property
    def summary(self) -> dict[str, Any]:
        """Return the summary: status, last and best metrics, seconds, bytes; of a run that still runs an empty one."""
        return read_run(self.path).summary or {}

    @property
    def metrics(self) -> pd.DataFrame:
        """Return what was measured: a row for each round, and one for each node that was measured in it.

        Columns: `round`; `node`, which is missing in the row of the whole round; each metric, by name: of the whole
        round means over nodes and what the server measures. Accuracies and F1 are fractions, losses are in nats, mae in
        the targets' units and mse in their squares. Only of the whole round: `seconds`, without evaluation;
        `bytes_up` and `bytes_down`, of the method's messages; `failures`.
        """
        import pandas

        rows: list[dict[str, Any]] = []
        for line in read_run(self.path).lines:
            sizes = {f"bytes_{way}": sum(line["bytes"][way].values()) for way in ("up", "down")}
            about = {"seconds": line["seconds"]["round"], **sizes, "failures": len(line["failures"])}
            rows.append({"round": line["round"], "node": None, **line["metrics"], **about})
            nodes: dict[int, dict[str, Any]] = {}
            for name, values in line["nodes"].items():
                for node, value in values.items():
                    nodes.setdefault(int(node), {})[name] = value
            rows += [{"round": line["round"], "node": node, **nodes[node]} for node in sorted(nodes)]
        frame = pandas.DataFrame(rows)
        return frame.astype({"node": "Int64"}) if rows else frame

    @property
    def figures(self) -> Figures:
        """Return the figures by name: those of the run folder, and the curves of `accuracy`, `loss`, ..."""
        return Figures(self.path)

    def model(self, node: int | None = None, which: Which = "last") -> TrainedModel:
        """Return a node's model, or without `node` the server's: a module in eval mode that predicts from raw samples.

        `which`: of the last round, or of the best one by `checkpoint.best`. Raises InputError for a node that is not
        there, and for a method without such a model.
        """
        return model_of_run(self.path, node, which)

    def test_samples(self, most: int = 32) -> np.ndarray | None:
        """Return some raw test samples of the run's data; None if these are not on this machine."""
        return real_samples(self.path, most)

    def __repr__(self) -> str:
        read = read_run(self.path)
        return f"Run({str(self.path)!r}): {read.strategy}, {read.reached} rounds, {read.status}"

    def _repr_html_(self) -> str:
        final, best = (self.summary.get(key, {}) for key in ("final", "best"))
        cells = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{as_text(name, value)}</td><td>{as_text(name, best[name])}</td></tr>"
            for name, value in final.items()
            if value is not None and best.get(name) is not None
        )
        table = f"<table><tr><th>metric</th><th>final</th><th>best</th></tr>{cells}</table>" if cells else ""
        curve = self.path / "figures" / "curves.png"
        picture = base64.b64encode(curve.read_bytes()).decode() if curve.is_file() else ""
        shown = f'<img alt="curves" style="max-width: 600px" src="data:image/png;base64,{picture}">' if picture else ""
        return f"<div><b>{html.escape(repr(self))}</b>{table}{shown}</div>"


def _as_png(figure: Figure) -> bytes:
    with in_style(SCREEN):
        return content_of(figure, "png")


class Compared:
    """A comparison of runs: a table of texts, and the same for a paper."""

    def __init__(self, comparison: Comparison, columns: Sequence[str]) -> None:
        self.comparison = comparison  # the numbers
        self._columns = columns

    @property
    def table(self) -> pd.DataFrame:
        """Return the table: a row for each strategy; means over seeds with their deviations, as texts."""
        import pandas

        header, rows = printed.table(self.comparison, self._columns)
        return pandas.DataFrame(rows, columns=header)

    def to_latex(self) -> str:
        """Return the table for LaTeX, with booktabs: the best of a column is bold, the second underlined."""
        return printed.to_latex([self.comparison], self._columns)

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return printed.to_markdown([self.comparison], self._columns)

    def __repr__(self) -> str:
        return f"{printed.caption(self.comparison, self._columns)}\n{self.table.to_string(index=False)}"

    def _repr_html_(self) -> str:
        caption = html.escape(printed.caption(self.comparison, self._columns))
        return f"<div>{self.table.to_html(index=False)}<p>{caption}</p></div>"


def compare(
    runs: Iterable[Run | str | Path],
    baseline: str | None = None,
    *,
    metric: str | None = None,
    target: float | None = None,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    across: Sequence[str] = (),
) -> Compared:
    """Compare finished runs, and the runs in folders, that differ in their strategy and seed; see docs/compare.md.

    `baseline`: the strategy of the differences. `metric`: by default the first that all runs have. `target`: also show
    rounds, megabytes and seconds to this value. `columns`, `rows`, `names`: what is shown, in which order, and under
    which names. `across`: keys in which the runs may differ too. Raises InputError for runs that cannot be compared,
    and if none has been completed.
    """
    found, problems = find_runs([one.path if isinstance(one, Run) else Path(one).expanduser() for one in runs])
    done, others = completed(found)
    if not done:
        raise InputError(" ".join(["No run has been completed.", *problems, *others]))
    (group,) = split(done, (), across).values()
    beside = printed.check_columns(columns, {one for run in done for one in run.metrics()}, target=target is not None)
    comparison = comparing(
        group, metric=metric, target=target, baseline=baseline, names=names, rows=rows, beside=beside
    )
    for problem in [*problems, *others, *comparison.problems]:
        print(f"fedkd: {problem}", file=sys.stderr)
    return Compared(comparison, columns)


class Figures(Mapping[str, "Figure"]):
    """The figures of a run by name, each drawn when it is asked for, as figures of matplotlib."""

    def __init__(self, path: Path) -> None:
        self._made = figures_of(path)

    def __getitem__(self, name: str) -> Figure:
        if name not in self._made:
            raise KeyError(f"{name}; this run has {', '.join(self._made)}")
        with in_style(SCREEN):
            drawing = self._made[name]()
        if drawing is None:
            raise KeyError(f"{name}: there is nothing to draw")
        figure = drawing.figure
        figure._repr_png_ = lambda: _as_png(figure)  # type: ignore[attr-defined]  # a notebook shows it
        return figure

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)

    def __repr__(self) -> str:
        return f"figures: {', '.join(self._made)}"

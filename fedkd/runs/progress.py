"""The progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import html
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from ..messages.metric_names import as_text, is_main

if TYPE_CHECKING:
    from ..core.environment import Environment
    from ..core.record import Record

_LEAST_COLUMNS = 60  # of a terminal, for bars
_REDRAW_SECONDS = 0.2  # the shortest time between two steps that a notebook shows
_QUIET_SECONDS = 10.0  # the shortest time between two lines about the same round


class ManyRuns:
    """The progress of several runs: one bar for all, and one for each current run; plain lines without a terminal.

    The line of a failed run stays visible.
    """

    def __init__(self, stream: TextIO, total: int) -> None:
        self._stream = stream
        self._total = total
        self._done = 0
        self._begin = time.monotonic()
        self._last_line: dict[str, tuple[float, int]] = {}  # for each run: the time and the round of its last line
        self._rounds: dict[str, int] = {}
        self._bar: Any = None
        self._all: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> ManyRuns:
        if _takes_bars(self._stream):
            from rich.progress import TextColumn
            from rich.table import Column

            shown = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # this column shrinks on a narrow terminal
            self._bar = _bar(self._stream, TextColumn("{task.fields[shown]}", table_column=shown, markup=False))
            self._bar.start()
            self._all = self._bar.add_task("runs", total=self._total, shown="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str, rounds: int) -> None:
        """Show that a run has started."""
        self._rounds[name] = rounds
        self._last_line[name] = (time.monotonic(), 0)
        if self._bar is not None:
            self._tasks[name] = self._bar.add_task(name, total=rounds, shown="")

    def update(self, name: str, number: int, metrics: dict[str, float]) -> None:
        """Show the progress of a run."""
        shown = _main_metrics(metrics)
        when, before = self._last_line[name]
        if self._bar is not None:
            self._bar.update(self._tasks[name], completed=number, shown=shown)
        elif number > before and time.monotonic() - when > _QUIET_SECONDS:
            self._last_line[name] = (time.monotonic(), number)
            self.line(f"{name}  round {number}/{self._rounds[name]}  {shown}".rstrip())

    def end(self, name: str, reason: str | None, *, finished: bool) -> None:
        """Show that a run has ended, with the reason if it failed. Without `finished` it will run again."""
        self._done += finished
        if self._bar is not None:
            self._bar.remove_task(self._tasks.pop(name))
            self._bar.update(self._all, completed=self._done)
        if reason is not None:
            self.line(f"{name}: {reason}")
        elif self._bar is None:
            seconds = time.monotonic() - self._begin
            left = seconds / self._done * (self._total - self._done)
            more = f"  left {left:.0f} s" if self._done < self._total else ""
            self.line(f"{self._done}/{self._total} runs  {name}{more}")

    def line(self, text: str) -> None:
        """Show a line of text."""
        _line(self._bar, self._stream, text)


def _takes_bars(stream: TextIO) -> bool:
    """Return whether bars can stay in place on a stream: it is a terminal that can move its cursor, and wide enough."""
    if not stream.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return False
    return shutil.get_terminal_size().columns >= _LEAST_COLUMNS


def _speed(per_second: float) -> str:
    return f"{per_second:.2g}/s" if per_second < 10 else f"{per_second:.0f}/s"


def _bar(stream: TextIO, *more: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(_speed(task.speed) if task.speed else "")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Speed(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *more,
    )
    return Progress(*columns, console=Console(file=stream, markup=False, emoji=False), expand=bool(more))


def _line(bar: Any, stream: TextIO, text: str) -> None:
    if bar is not None:
        bar.console.print(text, highlight=False, markup=False)
    else:
        print(text, file=stream, flush=True)


def _main_metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {as_text(name, value)}" for name, value in sorted(metrics.items()) if is_main(name))


class Progress:
    """A bar with the current metrics and the remaining time; plain lines if the output is not a terminal."""

    def __init__(self, stream: TextIO, unit: str = "round") -> None:
        self._stream = stream
        self._unit = unit
        self._begin = time.monotonic()
        self._first: int | None = None
        self._shown = ""
        self._bar: Any = None
        self._task: Any = None
        self._step_task: Any = None
        self._last_line = self._begin
        self._step_begin = self._begin

    def __enter__(self) -> Progress:
        if _takes_bars(self._stream):
            self._bar = _bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, record: Record, environment: Environment) -> None:
        """Show the finished round."""
        for failure in record.failures:
            self.line(f"round {record.number}: node {failure['node']}, {failure['action']}: {failure['reason']}")
        self.advance(record.number, environment.config.rounds, record.metrics)

    def advance(self, number: int, total: int, metrics: dict[str, float]) -> None:
        """Show the number of finished rounds. If nothing was measured, at most one line every ten seconds."""
        if self._first is None:
            self._first, self._begin = number, time.monotonic()
        shown = _main_metrics(metrics)
        self._shown = shown or self._shown
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=number, description=self._shown)
            return
        if self._unit != "round" and not shown and time.monotonic() - self._last_line < _QUIET_SECONDS:
            return
        self._last_line = time.monotonic()
        done = number - self._first
        left = (time.monotonic() - self._begin) / done * (total - number) if done else 0.0
        text = f"{self._unit} {number}/{total}" + (f"  {self._shown}" if shown else "")
        self.line(text + (f"  left {left:.0f} s" if done and number < total else ""))

    def step(self, number: int, what: str, done: int, total: int) -> None:
        """Show the progress of long work on the server: a second bar, or a line every ten seconds."""
        if self._bar is not None:
            if self._step_task is None:
                self._step_task = self._bar.add_task(what, total=total)
            self._bar.update(self._step_task, description=what, completed=done, total=total, visible=done < total)
            return
        now = time.monotonic()
        if done == 0:
            self._step_begin = now
        if done == number == 0 and total > 1:  # a run that has shown nothing yet must not look as if it hung
            self._last_line = now
            self.line(f"round {number}: {what} 0/{total}")
        elif now - self._last_line > _QUIET_SECONDS and 0 < done < total:
            self._last_line = now
            speed = done / max(now - self._step_begin, 1e-9)
            self.line(f"round {number}: {what} {done}/{total}  {_speed(speed)}  left {(total - done) / speed:.0f} s")

    def line(self, text: str) -> None:
        """Show a line of text."""
        _line(self._bar, self._stream, text)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows HTML."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


class NotebookProgress(Progress):
    """The progress of a run in a notebook: a bar in place, and a line for each failure."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._display: Any = None

    def advance(self, number: int, total: int, metrics: dict[str, float]) -> None:
        """Show the number of finished rounds."""
        self._shown = _main_metrics(metrics) or self._shown
        self._show(f'<progress value="{number}" max="{total}"></progress> round {number}/{total}', self._shown)

    def step(self, number: int, what: str, done: int, total: int) -> None:
        """Show the progress of long work on the server."""
        if time.monotonic() - self._last_line > _REDRAW_SECONDS or done in (0, total):
            self._last_line = time.monotonic()
            self._show(f'<progress value="{done}" max="{total}"></progress> round {number}', f"{what} {done}/{total}")

    def _show(self, bar: str, text: str) -> None:
        from IPython import display

        shown = display.HTML(f"{bar} {html.escape(text)}")
        if self._display is None:
            self._display = display.display(shown, display_id=True)
        else:
            self._display.update(shown)

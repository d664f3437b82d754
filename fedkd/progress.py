"""The progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from .environment import Environment
    from .strategy import Record

_QUIET_SECONDS = 10.0  # between two lines about the same round


class Progress:
    """A bar with the current metrics and the time left; plain lines where the output is no terminal."""

    def __init__(self, stream: TextIO, unit: str = "round") -> None:
        self._stream = stream
        self._unit = unit
        self._begin = time.monotonic()
        self._first: int | None = None
        self._shown = ""
        self._bar: Any = None
        self._task: Any = None
        self._step_task: Any = None
        self._told = self._begin

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
                TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(file=self._stream))
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, record: Record, environment: Environment) -> None:
        """Show the round that has ended."""
        for failure in record.failures:
            self.line(f"round {record.number}: node {failure['node']}, {failure['action']}: {failure['reason']}")
        self.advance(record.number, environment.config.rounds, record.metrics)

    def advance(self, number: int, total: int, metrics: dict[str, float]) -> None:
        """Show that so many are done; of those that nothing was measured in, a line every ten seconds at most."""
        if self._first is None:
            self._first, self._begin = number, time.monotonic()
        shown = [(n, v) for n, v in sorted(metrics.items()) if n.endswith("accuracy")]
        if shown:
            self._shown = "  ".join(f"{name} {value:.3f}" for name, value in shown)
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=number, description=self._shown)
            return
        if self._unit != "round" and not shown and time.monotonic() - self._told < _QUIET_SECONDS:
            return
        self._told = time.monotonic()
        done = number - self._first
        left = (time.monotonic() - self._begin) / done * (total - number) if done else 0.0
        text = f"{self._unit} {number}/{total}" + (f"  {self._shown}" if shown else "")
        self.line(text + (f"  left {left:.0f} s" if done and number < total else ""))

    def step(self, number: int, what: str, done: int, total: int) -> None:
        """Show how far long work on the server is: a second bar, or a line every ten seconds."""
        if self._bar is not None:
            if self._step_task is None:
                self._step_task = self._bar.add_task(what, total=total)
            self._bar.update(self._step_task, description=what, completed=done, total=total, visible=done < total)
        elif time.monotonic() - self._told > _QUIET_SECONDS and 0 < done < total:
            self._told = time.monotonic()
            self.line(f"round {number}: {what} {done}/{total}")

    def line(self, text: str) -> None:
        """Show a line of text."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

"""Progress in plain lines, where there is no terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest

from fedkd.runs import progress


def test_long_work_on_the_server_is_told_in_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_QUIET_SECONDS", -1.0)
    with progress.Progress(sys.stderr) as shown:
        for done in range(3):
            shown.step(4, "server distillation", done, 2)
    text = capsys.readouterr().err
    assert re.fullmatch(r"round 4: server distillation 1/2  \d+/s  left 0 s\n", text)


def test_long_work_before_round_one_shows_that_it_has_begun(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress(sys.stderr) as shown:
        shown.step(0, "initial distillation", 0, 100)
    assert capsys.readouterr().err == "round 0: initial distillation 0/100\n"


@pytest.mark.parametrize(("term", "columns", "bars"), [("xterm", 80, True), ("dumb", 80, False), ("xterm", 20, False)])
def test_bars_are_only_where_they_can_stay_in_place(
    monkeypatch: pytest.MonkeyPatch, term: str, columns: int, bars: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    with progress.Progress(terminal) as shown:
        shown.advance(1, 3, {"global/accuracy": 0.5})
    assert ("\x1b[" in terminal.getvalue()) == bars

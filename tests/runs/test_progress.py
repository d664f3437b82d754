"""Progress in plain lines, where there is no terminal."""

from __future__ import annotations

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
    assert capsys.readouterr().err == "round 4: server distillation 1/2\n"

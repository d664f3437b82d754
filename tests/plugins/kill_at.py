"""The command line in a process that kills itself with SIGKILL, at the n-th call of a function.

`python kill_at.py fedkd.runs.checkpoints:_save 3 run config.toml --out folder`; `torn` in place of a function writes
half of the n-th line of metrics.jsonl first.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from fedkd import cli
from fedkd.runs import run_folder


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(where: str, number: int) -> None:
    module_name, name = where.split(":")
    module = importlib.import_module(module_name)
    function, calls = getattr(module, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            die()
        return function(*args, **kwargs)

    setattr(module, name, counted)


def kill_while_writing(number: int) -> None:
    append, calls = run_folder.RunFolder.append, 0

    def torn(self: run_folder.RunFolder, line: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        append(self, line)
        if calls == number:
            path = self.path / "metrics.jsonl"
            path.write_text(path.read_text()[:-40])
            die()

    run_folder.RunFolder.append = torn  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == "torn":
        kill_while_writing(int(sys.argv[2]))
    else:
        kill_at(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["fedkd", *sys.argv[3:]]
    cli.app()

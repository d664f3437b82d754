"""Starts Flower's SuperLink or a SuperNode, with its output as JSON and its metrics for Prometheus beside it.

Both are served by this process, so nothing that reads them can disturb a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, TextIO

from ..errors import InputError, reason_of

LOGS = ("text", "json")
LINES = "FEDKD_LOG_LINES"  # the environment variable with the named pipe for lines of a run
_LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FLOWERS = re.compile(rf"({_LEVELS})\s*:\s*(.*)")  # its logger's, and uvicorn's
_SUPERLINKS = re.compile(rf"\d{{4}}-\d\d-\d\dT[0-9:.]+Z ({_LEVELS}) \[[\w.]+\] (.*)")  # uvicorn's in a SuperLink
_LONGEST = 2**16  # bytes of a line; the rest is the next one
_LAST_LINES_SECONDS = 10.0  # for the lines that are on their way when the program has ended


def launch(program: Sequence[str], name: str, log: str) -> int:
    """Run a program until it ends; return its exit code, 128 and the signal's number if a signal has ended it.

    SIGTERM, SIGINT and SIGHUP are passed on to it. `name`: the source that JSON lines name. `log`: text or json.
    Raises InputError for another `log`, and for a program that cannot be started.
    """
    if log not in LOGS:
        raise InputError(f"FEDKD_LOG = {log!r}: choose one of {', '.join(LOGS)}.")
    if log == "text":
        with _started(program) as child:
            return _code_of(child)
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        pipe = Path(folder) / "lines"
        os.mkfifo(pipe, 0o600)
        end = os.open(pipe, os.O_RDWR)  # the pipe ends when this is closed, not when a run ends
        options = {"env": {**os.environ, LINES: str(pipe)}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with pipe.open("rb") as lines, _started(program, **options) as child:
            assert child.stdout is not None
            readers = [
                threading.Thread(target=write_as_json, args=(one, sys.stdout, name), daemon=True)
                for one in (child.stdout, lines)
            ]
            for reader in readers:
                reader.start()
            code = _code_of(child)
            os.close(end)
            for reader in readers:
                reader.join(_LAST_LINES_SECONDS)
            return code


def _code_of(child: subprocess.Popen[bytes]) -> int:
    code = child.wait()
    return code if code >= 0 else 128 - code


@contextlib.contextmanager
def _started(program: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program, in a session of its own: so a terminal's Ctrl-C reaches it once, from here."""
    try:
        child = subprocess.Popen(program, start_new_session=True, **options)
    except OSError as error:
        raise InputError(f"{program[0]} cannot be started: {reason_of(error)}.") from error
    with _signals_passed_on(child):
        yield child


@contextlib.contextmanager
def _signals_passed_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {one: signal.signal(one, pass_on) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_as_json(lines: BinaryIO, out: TextIO, name: str) -> None:
    """Write lines as JSON objects until they end. If nobody reads `out` any more, they are still read."""
    while line := lines.readline(_LONGEST):
        record = json_line(line.decode(errors="replace"), name, datetime.now(UTC))
        if record is not None:
            with contextlib.suppress(OSError, ValueError):
                out.write(f"{record}\n")  # at once: another thread may write as well
                out.flush()


def json_line(line: str, name: str, time: datetime) -> str | None:
    """Return a line of a log as a JSON object: time, level, source, message; None if it is empty.

    The level is the one that the line begins with, INFO if it has none.
    """
    text = "".join(c for c in _COLOURS.sub("", line).strip("\n") if c.isprintable() or c == "\t").rstrip()
    if (found := _FLOWERS.fullmatch(text) or _SUPERLINKS.fullmatch(text)) is not None:
        level, message = found.groups()
    else:
        level, message = "INFO", text
    if not message.strip():
        return None
    when = time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": when, "level": level, "source": name, "message": message})

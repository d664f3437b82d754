"""What tests with a real SuperLink and real SuperNodes need: ports, waiting for their output, ending one."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

from helpers.shell import Shell


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(path: Path, text: str, seconds: float = 120.0) -> None:
    """Wait until a file has this text."""
    waited = threading.Event()
    for _ in range(int(seconds / 0.2)):
        if path.is_file() and text in path.read_text():
            return
        waited.wait(0.2)
    raise AssertionError(f"{path} without {text!r}: {path.read_text() if path.is_file() else 'it is not there'}")


def end(shell: Shell, *parts: str, program: str = "flower-supernode") -> None:
    """End the SuperNode whose command line and folder have these parts, as Ctrl-C does, and wait until it is gone.

    `program`: another one to end.
    """
    waited, asked = threading.Event(), set()
    for _ in range(300):
        there = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace") + os.readlink(entry / "cwd")
            except OSError:
                continue
            if program in command and all(part in command for part in parts):
                there.add(int(entry.name))
        if not there:
            shell.does("jobs")  # the shell takes note
            return
        for one in there - asked:
            os.kill(one, signal.SIGTERM)
        asked |= there
        waited.wait(0.2)
    raise AssertionError(f"a {program} does not end: {parts}")

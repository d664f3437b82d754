"""Removes what a run's Ray cluster leaves behind. A process of its own, so that it also works after kill -9 of the run.

Its standard input is a pipe that ends with the run. It imports nothing but Python's own modules, to start at once.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

MARK = "FEDKD_RAY_FOLDER"  # this variable of Ray's processes has the cluster's folder
_END_SECONDS = 5.0  # time for them to end by themselves
_LOOK_SECONDS = 0.05


def keep(root: Path) -> None:
    """Wait for the end of the run; then end the processes of a cluster, and remove its folder."""
    sys.stdin.buffer.read()
    ends = time.monotonic() + _END_SECONDS
    while left := processes_of(root):
        if time.monotonic() > ends:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)
    shutil.rmtree(root, ignore_errors=True)


def processes_of(root: Path) -> list[int]:
    """Return the processes of the cluster with this folder."""
    mark = f"{MARK}={root}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    keep(Path(sys.argv[1]))

"""An interactive shell for commands of the documentation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

SECONDS = 900  # that a command may take on a busy machine


class Shell:
    """An interactive shell in a folder. What it has started ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": "local",  # not the cluster of another test, or what is left of one
        }
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=folder, env=environment, stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.does("set -m")

    def does(self, command: str) -> str:
        """Run a command that must succeed; return its output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        guard = threading.Timer(SECONDS, self.end)
        guard.start()
        self.process.stdin.write(f'{command}\necho "done: $?"\n')
        self.process.stdin.flush()
        output = ""
        for line in self.process.stdout:
            if line.startswith("done: "):
                guard.cancel()
                assert line == "done: 0\n", f"{command}\n{output}"
                return output
            output += line
        raise AssertionError(f"{command} took more than {SECONDS} s, or ended the shell:\n{output}")

    def jobs(self) -> list[int]:
        """Return the process groups of what runs in the background."""
        return [int(pid) for pid in self.does("jobs -p").split()]

    def end(self) -> None:
        """End everything that was started, also what has left the shell's session."""
        for status in Path("/proc").glob("[0-9]*/environ"):
            try:
                ours = f"FLWR_HOME={self.folder}/".encode() in status.read_bytes()
            except OSError:
                continue
            if ours and int(status.parent.name) != os.getpid():
                os.kill(int(status.parent.name), signal.SIGKILL)
        self.process.kill()

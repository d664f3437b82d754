"""The start of the command line: `fedkd` and `python -m fedkd`."""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Run a command, and exit with its code: see `fedkd.cli.common`."""
    _open_standard_streams()
    _use_utf8()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # before and after the work, Ctrl-C ends without a traceback
    from .stopping import Stopped, stoppable

    try:
        with stoppable():
            from .cli import app

            app(prog_name="fedkd")
    except Stopped as stopped:  # before or after a command's own work
        _end(128 + stopped.number)
    except SystemExit as done:
        sys.stdout.flush()
        if isinstance(done.code, int) and done.code > 128:
            _end(done.code)
        lost = getattr(sys.stdout, "lost", None)
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        if lost and not done.code and command not in ("run", "sweep", "distill"):  # their results are files
            print(f"fedkd: the output could not be written: {lost}.", file=sys.stderr)
            sys.exit(1)
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _end(code: int) -> NoReturn:
    """End this process after a signal, without taking Python apart: Ray's threads, if one is at work, would crash."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed (cron, daemons), and make streams forgiving.

    Without this, the next file that is opened gets the number of the closed stream, and what is printed goes into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, io.TextIOWrapper):
            encoding = "utf-8" if stream is None else stream.encoding
            buffer = open(number, "wb", closefd=False)  # noqa: SIM115 - it lasts as long as the process
            setattr(sys, name, _Forgiving(buffer, encoding, "backslashreplace", line_buffering=True))


class _Forgiving(io.TextIOWrapper):
    """A text stream whose reader may go away: what cannot be written is dropped, so that the work goes on."""

    lost: str | None = None  # why something was dropped, if not because its reader has gone

    def write(self, text: str) -> int:
        """Write a text, or drop it if the reader is gone or the disk is full."""
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, if there is still a reader."""
        try:
            super().flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno != errno.EPIPE:
            self.lost = error.strerror


def _use_utf8() -> None:
    """Start Python again in its UTF-8 mode if the locale is ASCII: names of files and classes may have any letters."""
    if sys.flags.utf8_mode or sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
        return
    os.environ["PYTHONUTF8"] = "1"  # also for worker processes
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()

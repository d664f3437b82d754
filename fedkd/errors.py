"""The errors: refused input (exit code 2), a run that failed (exit code 1), and a payload that is not as expected."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from .masking import masked_text

_PYTHON = (sysconfig.get_path("stdlib"), "<frozen")
_LONGEST = 10_000  # characters of a text that are looked at before it is cut


class InputError(Exception):
    """Input that is refused before anything runs; the message names the key, the error and what is valid."""


class MissingFiles(InputError):
    """A set whose files are not on this machine. They may be on another one."""


class RunError(Exception):
    """A run that cannot continue, for example after a round with fewer good replies than `min_replies`."""


class PayloadError(ValueError):
    """A payload that is not as expected; the message names the array or number and the error."""


def unknown(what: str, name: str, valid: Iterable[str]) -> InputError:
    """Return the error for a name that is not in `valid`, with the nearest valid name."""
    return InputError(f"{what}: unknown {on_one_line(name, 100)!r}{nearest(name, valid)}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid name, if one is similar, and all valid names."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, [other for other in names if other != name], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Valid: {', '.join(names) or '(none)'}."


def on_one_line(text: str, most: int = 400) -> str:
    """Return text from outside in a safe form: one line, no control characters, no secrets, at most `most` signs."""
    plain = "".join(c if c.isprintable() else " " for c in masked_text(text))
    plain = " ".join(plain.split())
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


def printable(text: str) -> str:
    """Return text from outside without control characters, which could move a cursor or hide a part; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def described(error: BaseException) -> str:
    """Return an error of foreign code on one line: its type and its text, shortened."""
    try:
        text = str(error)
    except Exception:  # foreign code may fail even here
        text = "its text cannot be made"
    return on_one_line(f"{type(error).__name__}: {text[:_LONGEST]}", 400).removesuffix(":").removesuffix(".")


def reason_of(error: Exception) -> str:
    """Return why a file or folder cannot be used: the system's words, without its path."""
    return (error.strerror if isinstance(error, OSError) else None) or on_one_line(str(error))


def place_of(error: BaseException) -> str:
    """Return the file and line of the code that raised an error: the last one outside Python and installed packages."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith(_PYTHON)
    ]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def some(names: Sequence[str], most: int = 10) -> str:
    """Return names as text: the first `most` of them, and how many there are if that is not all."""
    shown = ", ".join(on_one_line(name, 60) for name in names[:most])
    return f"{shown}, ... ({len(names)})" if len(names) > most else shown


class TooFewReplies(RunError):
    """A request with fewer good replies than it needs."""


class EngineLost(RunError):
    """The engine's own processes have died, and the states of nodes with them; a new process can resume the run."""


class StatesLost(RunError):
    """The states of nodes were lost with the machine that stored them; the run can resume from its last checkpoint."""

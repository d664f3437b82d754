"""The two kinds of error that a user sees: refused input (exit code 2) and a run that failed (exit code 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Input that is refused before anything runs; the message names the key, the error and what is valid."""


class RunError(Exception):
    """A run that cannot continue, for example after a round with fewer good replies than `min_replies`."""


def unknown(what: str, name: str, valid: Iterable[str]) -> InputError:
    """Return the error for a name that is not in `valid`, with the nearest valid name."""
    return InputError(f"{what}: unknown {name!r}{nearest(name, valid)}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message: the nearest valid name, if one is similar, and all valid names."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Valid: {', '.join(names) or '(none)'}."


def on_one_line(text: str, most: int = 400) -> str:
    """Return text from outside in a safe form: one line, without control characters, at most `most` characters."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    plain = " ".join(plain.split())
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."


class TooFewReplies(RunError):
    """A request with fewer good replies than it needs."""


class StatesLost(RunError):
    """The states of nodes were lost with the machine that stored them; the run can resume from its last checkpoint."""

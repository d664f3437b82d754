"""Signals that end work: Ctrl-C, SIGTERM (Slurm, docker stop) and SIGHUP (a closed terminal) all raise `Stopped`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_AGAIN_SECONDS = 0.05
_MOST_POSTPONED = 100  # then a signal ends even an import, which may hang
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_received: int | None = None  # the first signal inside the outermost `stoppable`
_depth = 0
_deferring = False
_postponed = 0  # times that a signal has been sent again because of an import


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Inside the `with` block, a signal raises `Stopped` in the main thread; a signal that is ignored stays ignored.

    The first signal counts: later ones are ignored while the work saves what it has, but a second Ctrl-C ends that too.
    Blocks may be nested. Raises `Stopped` also where a library, such as Ray, has turned it into a KeyboardInterrupt.
    """
    global _received, _depth, _postponed
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook
    if _depth == 0:
        _received, _postponed = None, 0
        sys.unraisablehook = _not_lost(hook)
    _depth += 1
    _take()
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Stopped) or _received is None:
            raise
        raise Stopped(_received) from error
    finally:
        _depth -= 1
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until the end of the `with` block, which is short; a second Ctrl-C does not wait."""
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before
    if not before:
        check()


def retake() -> None:
    """Take the signals again, which a library such as Ray has taken at its start."""
    if _depth and threading.current_thread() is threading.main_thread():
        _take()


def check() -> None:
    """Raise `Stopped` if a signal has come, and code in between has swallowed the exception."""
    if _depth and _received is not None and threading.current_thread() is threading.main_thread():
        raise Stopped(_received)


def _take() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, or in the background of a script
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received, _postponed
    if _is_importing(frame) and _postponed < _MOST_POSTPONED:
        _postponed += 1  # C++ code that is being imported would abort the process
        _send_again(number)
        return
    first = _received is None
    _received = _received or number
    if (first and not _deferring) or (not first and number == signal.SIGINT):
        raise Stopped(number)


def _send_again(number: int) -> None:
    again = threading.Timer(_AGAIN_SECONDS, os.kill, [os.getpid(), number])
    again.daemon = True
    again.start()


def _not_lost(others: Callable[[sys.UnraisableHookArgs], object]) -> Callable[[sys.UnraisableHookArgs], object]:
    """Return a hook for `Stopped` in a destructor or a callback of the garbage collector, where it cannot be raised."""

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        global _received
        if isinstance(unraisable.exc_value, Stopped):
            _received = None
            _send_again(unraisable.exc_value.number)
        else:
            others(unraisable)

    return hook


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

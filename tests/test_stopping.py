"""Signals: where they raise, where they wait, and which of them counts."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedkd import stopping
from fedkd.stopping import Stopped, deferred, stoppable


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Take signals as a program of a terminal does: a job in the background ignores some."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_raises_inside_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, stoppable(), stoppable():
        send(number)
    assert stopped.value.number == number
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(number) is before


def test_a_deferred_signal_raises_at_the_end_of_the_block() -> None:
    done = []

    def work() -> None:
        with deferred():
            send(signal.SIGTERM)
            done.append("whole")
        done.append("never")

    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        work()
    assert done == ["whole"]


def test_later_signals_wait_for_what_is_being_saved_but_a_second_ctrl_c_does_not() -> None:
    with stoppable():
        with pytest.raises(Stopped, match="SIGHUP"):
            send(signal.SIGHUP)
        send(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGINT"):
            send(signal.SIGINT)


def test_a_signal_that_code_has_swallowed_is_not_forgotten() -> None:
    with stoppable():
        try:
            send(signal.SIGTERM)
        except BaseException:  # as a bare `except:` in a user's file does
            done = "swallowed"
        with pytest.raises(Stopped, match="SIGTERM"):
            stopping.check()
    assert done == "swallowed"
    stopping.check()  # outside nothing is pending


def test_a_signal_during_an_import_comes_again_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signalled.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nwhole = True\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        importlib.import_module("signalled")
        threading.Event().wait(30)

    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        work()
    assert sys.modules.pop("signalled").whole


def test_a_signal_inside_a_destructor_comes_again_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Sends:
        def __del__(self) -> None:
            send(signal.SIGHUP)

    def work() -> None:
        sends = Sends()
        del sends
        threading.Event().wait(30)

    hook = sys.unraisablehook
    with pytest.raises(Stopped, match="SIGHUP"), stoppable():
        work()
    assert capsys.readouterr().err == ""
    assert sys.unraisablehook is hook


def test_what_else_fails_inside_a_destructor_is_shown_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __del__(self) -> None:
            raise ValueError("of a destructor")

    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(str(unraisable.exc_value)))
    with stoppable():
        fails = Fails()
        del fails
    assert seen == ["of a destructor"]


def test_a_library_may_turn_a_signal_into_a_keyboard_interrupt() -> None:
    """As Ray's C++ code does; without a signal it stays what it is."""

    def work() -> None:
        try:
            send(signal.SIGHUP)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(Stopped, match="SIGHUP"), stoppable():
        work()
    with pytest.raises(KeyboardInterrupt) as own, stoppable():
        raise KeyboardInterrupt
    assert not isinstance(own.value, Stopped)


def test_in_another_thread_nothing_is_taken() -> None:
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stoppable():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]

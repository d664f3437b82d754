"""Every target refuses or takes whatever is drawn: a few cases in the default suite, a thousand with the slow ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fuzz.frame import HOME, NAMES, fuzz


@pytest.mark.parametrize("name", NAMES)
def test_fifty_cases(name: str) -> None:
    fuzz(name, 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_cases(name: str) -> None:
    fuzz(name, 1000, first_seed=1)


def test_the_command_runs_a_target_and_names_all() -> None:
    command = [sys.executable, str(HOME.parent / "run.py")]
    done = subprocess.run([*command, NAMES[0], "--cases", "2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2 cases\n"), done.stderr
    wrong = subprocess.run([*command, "nothing"], capture_output=True, text=True, check=False)
    assert all(name in wrong.stderr for name in NAMES)

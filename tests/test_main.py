"""The start of the command line: standard streams, locales, signals, the version, errors of a user's file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tomli_w
from helpers import TINY, default_signals, lines, merged

FEDKD = [sys.executable, "-m", "fedkd"]


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in which $FEDKD is the program."""
    variables = {**os.environ, "FEDKD": f"{sys.executable} -m fedkd", **environment}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=default_signals,
    )  # fmt: skip


def test_version_and_help() -> None:
    for argument in ("--version", "--help"):
        found = subprocess.run([*FEDKD, argument], capture_output=True, text=True, check=True)
        assert (version("fedkd") if argument == "--version" else "doctor") in found.stdout


@pytest.mark.slow
def test_the_doctor_finds_versions_devices_data_ray_and_space(tmp_path: Path) -> None:
    (tmp_path / "mnist.npz").touch()
    found = shell("$FEDKD doctor", tmp_path, FEDKD_DATA=str(tmp_path))
    assert found.returncode == 0
    for word in ("fedkd", "torch", "flwr", "devices", "mnist.npz", "ray starts  yes", "GiB"):
        assert word in found.stdout


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-", "| head -c 1", "> /dev/full"])
def test_a_run_goes_on_without_its_standard_streams(config: Path, tmp_path: Path, closed: str) -> None:
    found = shell(f"$FEDKD run {config} --out out --set rounds=1 {closed}", tmp_path)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert '"status": "completed"' in (tmp_path / "out" / "summary.json").read_text()
    assert len(lines(tmp_path / "out")) == 2


def test_an_ascii_locale_has_all_names(tmp_path: Path) -> None:
    (tmp_path / "Stratégie.py").write_text(
        "from fedkd.strategies.fedavg import FedAvg\nclass Été(FedAvg):\n    pass\n", encoding="utf-8"
    )
    table = merged(TINY, {"strategy": "Stratégie.py:Été", "rounds": 1})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = shell("$FEDKD run run.toml --out Läufe", tmp_path, **ascii_only)
    assert found.returncode == 0, found.stderr
    assert '"status": "completed"' in (tmp_path / "Läufe" / "summary.json").read_text(encoding="utf-8")


def test_debug_shows_the_traceback_and_only_it(tmp_path: Path) -> None:
    plain, debug = (shell(f"$FEDKD {option} run none.toml", tmp_path) for option in ("", "--debug"))
    said = "There is no config file none.toml, and no config of this name comes with fedkd."
    assert plain.stderr == f"fedkd: {said}\n"
    assert "Traceback" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)
    assert plain.returncode == debug.returncode == 2


SLOW = """
import os, signal, threading
from fedkd.strategies.fedavg import FedAvg
class Slow(FedAvg):
    def run_round(self, federation):
        super().run_round(federation)
        if federation.number == 2:
            threading.Event().wait()
class Signalled(FedAvg):
    def run_round(self, federation):
        super().run_round(federation)
        os.kill(os.getpid(), signal.SIGHUP)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_the_last_whole_round_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    table = merged(TINY, {"strategy": "slow.py:Slow", "rounds": 3, "checkpoint": {"every": 10}})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(table))
    command = [*FEDKD, "run", "run.toml", "--out", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=default_signals)
    assert process.stderr is not None
    before = iter(process.stderr.readline, "")
    assert any("round 1/3" in line for line in before)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1].endswith("continue with: fedkd run --resume out.")
    assert '"status": "interrupted"' in (tmp_path / "out" / "summary.json").read_text()
    checkpoints = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert checkpoints == ["round-000000", "round-000001"]
    assert len(lines(tmp_path / "out")) == 2


@pytest.mark.parametrize(("trap", "code"), [("trap '' HUP", 0), ("true", 129)])
def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored(tmp_path: Path, trap: str, code: int) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "run.toml").write_text(tomli_w.dumps(merged(TINY, {"strategy": "slow.py:Signalled"})))
    found = shell(f"{trap}; $FEDKD run run.toml --out out", tmp_path)
    assert found.returncode == code, found.stderr


@pytest.mark.parametrize(
    ("code", "option", "code_and_text"),
    [
        ("import sys; sys.exit(3)", "strategy=bad.py:X", (2, "bad.py cannot be loaded: SystemExit: 3")),
        ("raise ValueError('x' * 10**6)", "model=bad.py:X", (2, "cannot be loaded: ValueError: xxx")),
        ("def f(shape, classes): raise SystemExit", "model=bad.py:f", (2, "bad.py:f' cannot be built")),
        ("def f(shape, classes): return f(shape, classes)", "model=bad.py:f", (2, "recursion")),
        ("def f(*, root, download): import sys; sys.exit(1)", "data.name=bad.py:f", (2, "bad.py:f' raised SystemExit")),
        ("def f(*, root, download): return 3", "data.name=bad.py:f", (2, "returns int; valid are a fedkd.Dataset")),
        ("def f(pool, rng): exit()", "data.partition={scheme='bad.py:f'}", (2, "bad.py:f' raised SystemExit")),
        ("this is no Python", "strategy=bad.py:X", (2, "SyntaxError")),
    ],
)
def test_what_a_users_file_does_is_an_error_of_that_file(
    config: Path, tmp_path: Path, code: str, option: str, code_and_text: tuple[int, str]
) -> None:
    (tmp_path / "bad.py").write_text(code)
    found = shell(f'$FEDKD run {config} --out out --set "{option}"', tmp_path)
    assert (found.returncode, "Traceback" in found.stderr) == (code_and_text[0], False), found.stderr
    assert code_and_text[1] in found.stderr
    assert len(found.stderr) < 2000
    assert not (tmp_path / "out").exists()


def test_a_result_that_cannot_be_printed_is_no_success(tmp_path: Path) -> None:
    found = shell("$FEDKD list models > /dev/full", tmp_path)
    assert (found.returncode, found.stderr) == (1, "fedkd: the output could not be written: No space left on device.\n")
    assert shell("set -o pipefail; $FEDKD list models | head -1", tmp_path).returncode == 0

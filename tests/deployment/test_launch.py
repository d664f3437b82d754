"""`fedkd deploy launch`: what a program writes as JSON lines, its exit code, and the signals that reach it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from helpers import default_signals
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.deployment.app import _InBothLogs
from fedkd.deployment.launch import json_line, launch, write_as_json

NOON = datetime(2026, 1, 2, 12, 0, 0, 5000, UTC)


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("\x1b[92mINFO \x1b[0m:      SuperNode ID: 17\n", "INFO", "SuperNode ID: 17"),
        ("\x1b[91mERROR \x1b[0m:     The server refused this site: x\n", "ERROR", "The server refused this site: x"),
        ("INFO:     Application startup complete.\n", "INFO", "Application startup complete."),
        ("2026-01-02T11:59:00.001Z WARNING [uvicorn.error] slow: x\n", "WARNING", "slow: x"),
        ('site-1 (node 0): joined: "a" \\ b\n', "INFO", 'site-1 (node 0): joined: "a" \\ b'),
        ("round 1/3  personal/accuracy 0.624\n", "INFO", "round 1/3  personal/accuracy 0.624"),
        ("  File \"x.py\", line 3\n", "INFO", '  File "x.py", line 3'),
        ("a\x1b[2Jb\x00c\tÄ\u2028\n", "INFO", "a[2Jbc\tÄ"),
    ],
)  # fmt: skip
def test_a_line_becomes_one_json_object(line: str, level: str, message: str) -> None:
    found = json_line(line, "site-1", NOON)
    assert found is not None
    assert "\n" not in found
    wanted = {"time": "2026-01-02T12:00:00.005Z", "level": level, "source": "site-1", "message": message}
    assert json.loads(found) == wanted


@pytest.mark.parametrize("line", ["\n", "", "  \n", "\x1b[92mINFO \x1b[0m:      \n", "\x1b[0m\n"])
def test_an_empty_line_is_left_out(line: str) -> None:
    assert json_line(line, "server", NOON) is None


def test_bytes_that_are_no_text_and_lines_without_an_end_are_read_on() -> None:
    out = io.StringIO()
    write_as_json(io.BytesIO(b"\xff a\n\n" + b"x" * (2**16 + 3)), out, "server")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["\ufffd a", "x" * 2**16, "xxx"]


def test_a_reader_that_is_gone_does_not_stop_the_program() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    lines = io.BytesIO(b"a\nb\n")
    write_as_json(lines, Gone(), "server")
    assert lines.read() == b""


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
@pytest.mark.parametrize("log", ["text", "json"])
def test_the_programs_exit_code_is_kept(script: str, code: int, log: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert launch(["sh", "-c", script], "server", log) == code
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines_of_a_run_come_through_a_named_pipe_also_from_several_processes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert (
        launch(["sh", "-c", 'for n in 1 2; do echo "ERROR: run $n" > "$FEDKD_LOG_LINES"; done; echo own'], "s", "json")
        == 0
    )
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted((one["level"], one["message"]) for one in found) == [
        ("ERROR", "run 1"),
        ("ERROR", "run 2"),
        ("INFO", "own"),
    ]
    assert launch(["sh", "-c", 'exit "$(printf %s "${FEDKD_LOG_LINES:-}" | wc -c)"'], "s", "text") == 0


def test_a_run_writes_to_the_pipe_and_never_waits_for_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "lines"
    monkeypatch.setenv("FEDKD_LOG_LINES", str(pipe))
    both = _InBothLogs()
    print("there is no pipe", file=both)
    os.mkfifo(pipe)
    print("nobody reads", file=both)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for _ in range(100):
        print("x" * 4000, file=both)  # more than a pipe takes
    assert os.read(reader, 8002) == 2 * (b"x" * 4000 + b"\n")
    os.close(reader)
    assert capsys.readouterr().err == "there is no pipe\nnobody reads\n" + 100 * ("x" * 4000 + "\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_program_once_and_its_last_lines_are_read(number: signal.Signals) -> None:
    program = """
import signal, sys
def end(number, frame):
    signal.signal(number, signal.SIG_DFL)
    print("ERROR :  ended by", signal.Signals(number).name, file=sys.stderr, flush=True)
    sys.exit(7)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, end)
print("ready", flush=True)
while True:
    signal.pause()
"""
    words = ["-m", "fedkd", "deploy", "launch", "--name", "site-1", "--", sys.executable, "-c", program]
    child = subprocess.Popen(
        [sys.executable, *words],
        env={**os.environ, "FEDKD_LOG": "json"},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["message"] == "ready"
    os.killpg(child.pid, number)  # as a terminal does
    rest, _ = child.communicate(timeout=60)
    assert [(one["level"], one["message"]) for one in map(json.loads, rest.splitlines())] == [
        ("ERROR", f"ended by {number.name}")
    ]
    assert child.returncode == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--log", "xml", "--", "true"], "FEDKD_LOG = 'xml': choose one of text, json."),
        (["--", "./no-such-program"], "./no-such-program cannot be started: No such file or directory."),
        (["--metrics", "0", "--", "true"], "FEDKD_METRICS = '0': give a port, such as 9464"),
        (["--metrics", "70000", "--", "true"], "FEDKD_METRICS = '70000': give a port, such as 9464"),
        (["--metrics", "http://x:1", "--", "true"], "FEDKD_METRICS = 'http://x:1': give a port, such as 9464"),
        (
            ["--metrics", "192.0.2.1:9464", "--", "true"],
            "'192.0.2.1:9464': this address cannot be used",
        ),
    ],
)
def test_wrong_options_are_refused_before_the_program_starts(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["deploy", "launch", "--name", "server", *words])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())

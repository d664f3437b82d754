"""The cluster of a run is closed to everybody else, ends with the run, and says so if it dies. Each in a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import tomli_w
from helpers import TINY, checkpoint_bytes, lines, merged

from fedkd.config import parse_config
from fedkd.runs.run import run
from fedkd.simulations import ray_cluster
from fedkd.simulations.ray_cluster import _private_folder
from fedkd.simulations.ray_keeper import MARK, processes_of

pytestmark = [pytest.mark.xdist_group("ray")]


class DiskUsage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


FEDKD = [sys.executable, "-m", "fedkd"]
STRANGER = """
import logging, sys, ray
ray.init(address=sys.argv[1], logging_level=logging.CRITICAL, log_to_driver=False)
print("in", ray.get(ray.remote(num_cpus=0)(lambda: 1).remote(), timeout=20))
"""


def until(found: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Return what `found` finds, as soon as it finds something."""
    ends = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < ends, "it has not come"
        time.sleep(0.05)
    return value


def tree(process: int) -> list[int]:
    """Return a process and all below it."""
    below = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False).stdout.split()
    return [process, *(one for child in below for one in tree(int(child)))]


def root_of(process: int) -> Path | None:
    """Return the folder of the cluster that a run has started."""
    for one in tree(process):
        for word in environment_of(one):
            if word.startswith(f"{MARK}="):
                return Path(word.removeprefix(f"{MARK}="))
    return None


def environment_of(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/environ").read_text().split("\0")
    except OSError:  # it has ended
        return []


def named(process: int, name: str) -> int:
    """Return the process with a program's name below another one."""
    program = lambda one: Path(f"/proc/{one}/cmdline").read_text().split("\0")[0]  # noqa: E731
    return next(one for one in tree(process) if program(one).endswith(f"/{name}"))


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a long run on Ray, and waits for its rounds."""
    started = []

    def begin(**environment: str) -> subprocess.Popen[str]:
        changes = {
            "rounds": 100_000, "evaluate.every": 99_999, "checkpoint.every": 5,
            "engine": {"name": "ray", "workers": 1},
        }  # fmt: skip
        (tmp_path / "run.toml").write_text(tomli_w.dumps(merged(TINY, changes)))
        process = subprocess.Popen(
            [*FEDKD, "run", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")],
            stdout=subprocess.DEVNULL, stderr=(tmp_path / "said").open("w"), text=True, umask=0o022,
            env={**os.environ, **environment},
        )  # fmt: skip
        started.append(process)
        metrics = tmp_path / "run/metrics.jsonl"
        until(lambda: process.poll() is not None or (metrics.is_file() and metrics.read_text().count("\n") > 8))
        assert process.poll() is None, (tmp_path / "said").read_text()
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_nobody_else_gets_into_the_cluster_of_a_run_nor_reads_of_it(
    begun: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("known to all")
    process = begun(
        RAY_ADDRESS="192.0.2.9:6379", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="known to all", RAY_USE_TLS="1",
        RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"),
    )  # fmt: skip
    root = root_of(process.pid)
    assert root is not None
    # files
    others = [path for path in (root, *root.rglob("*")) if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert not others
    assert any(path.name == "raylet" and path.is_socket() for path in root.rglob("*"))
    # the token is fresh, and only in the environment
    (token,) = {
        word for one in tree(process.pid)[1:] for word in environment_of(one) if word.startswith("RAY_AUTH_TOKEN=")
    }
    secret = token.removeprefix("RAY_AUTH_TOKEN=").encode()
    assert len(secret) == 64
    assert not any(secret in Path(f"/proc/{one}/cmdline").read_bytes() for one in tree(process.pid))
    assert not [path for path in root.rglob("*") if path.is_file() and secret in path.read_bytes()]
    # ports: those of the loopback, also as an IPv4 address in an IPv6 socket
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    mine = [line for line in listening if {int(n) for n in re.findall(r"pid=(\d+)", line)} & set(tree(process.pid))]
    addresses = [line.split()[3] for line in mine]
    assert len(addresses) >= 5
    assert not [a for a in addresses if not a.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:"))]
    gcs = next(line.split()[3].rsplit(":")[-1] for line in mine if "gcs_server" in line)
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    for guess in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "known to all"}):
        words = [sys.executable, "-c", STRANGER, f"127.0.0.1:{gcs}"]
        env = {**without, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **guess}  # else it looks at another address
        try:
            stranger = subprocess.run(words, capture_output=True, text=True, env=env, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            continue
        assert stranger.returncode != 0
        assert "in 1" not in stranger.stdout
    assert process.poll() is None


def test_nothing_outlives_kill_9_of_a_run_even_if_a_worker_is_stopped(
    begun: Callable[..., subprocess.Popen[str]],
) -> None:
    process = begun()
    root = root_of(process.pid)
    assert root is not None
    worker = next(one for one in tree(process.pid) if "ClientActor" in Path(f"/proc/{one}/cmdline").read_text())
    os.kill(worker, signal.SIGSTOP)
    assert processes_of(root)
    process.kill()
    process.wait()
    until(lambda: not root.exists(), 30)
    assert not processes_of(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_run_whose_ray_dies_says_so_and_can_be_resumed(
    name: str, begun: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process, folder = begun(), tmp_path / "run"
    root = root_of(process.pid)
    assert root is not None
    os.kill(named(process.pid, name), signal.SIGKILL)
    assert process.wait(60) == 1
    said = [line for line in (tmp_path / "said").read_text().splitlines() if not line.startswith(("round ", "data: "))]
    assert [line for line in said if "fedkd: " in line] == said
    assert f"Ray's process {name} was ended by signal SIGKILL" in said[-1]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert f"Ray's process {name}" in summary["error"]
    assert not root.exists()
    rounds = len(lines(folder)) + 2
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("rounds = 100000", f"rounds = {rounds}"))
    done = subprocess.run([*FEDKD, "run", "--resume", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = merged(TINY, {"rounds": rounds, "evaluate.every": 99_999, "checkpoint.every": 5})
    run(parse_config(whole), tmp_path / "whole")
    assert lines(folder) == lines(tmp_path / "whole")
    assert checkpoint_bytes(folder) == checkpoint_bytes(tmp_path / "whole")


def test_a_folder_for_sockets_is_short_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # too long
    folder = _private_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(str(folder)) <= 40
    folder.rmdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(Exception, match="RAY_TMPDIR.*has more than 25 bytes"):
        _private_folder()
    monkeypatch.setattr("fedkd.simulations.ray_cluster._LONGEST", 1000)
    tmp_path.chmod(0o777)
    with pytest.raises(Exception, match="others can rename what is in it"):
        _private_folder()
    tmp_path.chmod(0o1777)
    assert _private_folder().parent == tmp_path


def test_a_run_on_a_full_disk_says_that_ray_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = SimpleNamespace(get_session_dir_path=lambda: str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "is_own", lambda: True)
        patch.setattr(ray_cluster.ray._private.worker, "_global_node", node)
        patch.setattr(ray_cluster.ray, "cluster_resources", dict)
        patch.setattr(ray_cluster.shutil, "disk_usage", lambda path: DiskUsage(1000, 980, 20))
        assert ray_cluster.full_disk() is None
        patch.setattr(ray_cluster.shutil, "disk_usage", lambda path: DiskUsage(1000, 991, 9))
        note = ray_cluster.full_disk()
    assert note is not None
    assert "GB left, so Ray moves no states of nodes to it (above 99% full)" in note
    monkeypatch.setattr("fedkd.simulations.ray.full_disk", lambda: note)
    run(parse_config(merged(TINY, {"rounds": 1, "engine": {"name": "ray", "workers": 1}})), tmp_path / "run")
    assert f"fedkd: {note}" in caplog.messages
    assert not [event for line in lines(tmp_path / "run") for event in line["events"]]

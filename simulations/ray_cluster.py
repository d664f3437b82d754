"""A Ray cluster of one run on this machine, closed to everybody else.

Who reaches Ray's ports runs code. So this cluster listens on the loopback only, and asks for a token that only the
run's own processes have. Its sockets, logs and spilled objects are in a folder that only their owner can open.
`ray_keeper`, a process of its own, removes what is left, also after kill -9 of the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray._private.services
import ray._private.worker
import ray._raylet

from fedkd.errors import EngineLost, InputError

from . import ray_keeper

_LONGEST = 25  # bytes of the parent folder's path: a socket's path, with Ray's names in it, has at most 107
_REAP_SECONDS = 0.1  # until a process whose sockets are closed has ended
TRAVELS = 2**20  # bytes of an object that this cluster sends with a call or result; larger ones go through the store
_FULL = 0.99  # the used part of a disk above which this cluster moves no more objects to it; Ray's own setting is 0.95
_FOREVER = 10**6  # seconds in which Ray does not end this process because another process of it has died


@dataclass
class _Own:
    """The cluster that this process has started."""

    keeper: subprocess.Popen[bytes]
    before: dict[str, str | None] = field(default_factory=dict)  # the environment


_own: _Own | None = None


def start() -> None:
    """Start the cluster and connect to it. Raises InputError if there is no place for its folder."""
    global _own
    stop()
    root = _private_folder()
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", ray_keeper.__file__, str(root)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env={},
    )  # fmt: skip
    _own = _Own(keeper)
    own = {  # of Ray's own processes too, which inherit it
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_TOKEN_PATH": None,
        "RAY_ENABLE_K8S_TOKEN_AUTH": "0", "RAY_USE_TLS": "0", ray_keeper.MARK: str(root),
    }  # fmt: skip
    _own.before = _set_environment(own)
    try:
        with _loopback_only(), _private_files():
            ray.init(
                address="local", _node_ip_address="127.0.0.1", _temp_dir=str(root / "r"), include_dashboard=False,
                log_to_driver=False, logging_level=logging.WARNING,
                _system_config={
                    "gcs_rpc_server_reconnect_timeout_s": _FOREVER, "max_direct_call_object_size": TRAVELS,
                    "local_fs_capacity_threshold": _FULL,
                },
            )  # fmt: skip
        for folder in root.glob("**/"):
            folder.chmod(0o700)  # Ray opens its folders to all
    except BaseException:
        stop()
        raise
    _drop_last_words()
    del os.environ[ray_keeper.MARK]  # processes that the run itself starts are not Ray's


def stop() -> None:
    """Disconnect, end the cluster that this process has started, and remove its folder."""
    global _own
    if lost() is not None:
        for process in _processes().values():
            process.kill()  # Ray would wait for the dead one
    ray.shutdown()
    if _own is not None:
        own, _own = _own, None
        _set_environment(own.before)
        assert own.keeper.stdin is not None
        own.keeper.stdin.close()
        own.keeper.wait()


def is_own() -> bool:
    """Return whether this process has started the cluster, with its settings."""
    return _own is not None


def full_disk() -> str | None:
    """Return a note if the disk of this process's cluster is so full that Ray moves no object to it, or None.

    Ray then waits without a word as soon as the nodes' states do not fit into its object store.
    """
    node: Any = ray._private.worker._global_node
    if (
        not is_own()
        or (disk := shutil.disk_usage(folder := node.get_session_dir_path())).free > (1 - _FULL) * disk.total
    ):
        return None
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    return (
        f"the disk of Ray's files, {folder}, has {disk.free / 1e9:.1f} GB left, so Ray moves no states of nodes to it "
        f"(above {_FULL:.0%} full), and a run with states above its object store ({store / 1e9:.1f} GB) stands still: "
        "free some space."
    )


def lost(patience: float = 0.0) -> str | None:
    """Return why the cluster that this process has started cannot go on, or None.

    `patience`: seconds to wait for the end of a process, if one seems to have died.
    """
    for name, process in _processes().items():
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(patience)
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
            return f"Ray's process {name} was ended {how}, and the workers with it"
    return None


def refuse_lost(*, after_error: bool = False) -> None:
    """Raise EngineLost if the cluster that this process has started cannot go on.

    Call it before Ray is used: without its store Ray ends this process without a word. `after_error`: Ray has raised
    an error, perhaps because one of its processes is ending.
    """
    if (reason := lost(_REAP_SECONDS if after_error else 0.0)) is not None:
        raise EngineLost(f"{reason}. Continue with --resume; repeat the command of a sweep.")


def umask() -> int:
    """Return which permissions new files of this process do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _processes() -> dict[str, subprocess.Popen[bytes]]:
    """Return the processes of the cluster that this process has started; none of another cluster."""
    node: Any = ray._private.worker._global_node
    started = {} if node is None else node.all_processes
    return {name: started[name][0].process for name in ("gcs_server", "raylet") if name in started}


def _private_folder() -> Path:
    """Make a folder that only its owner can open, with a path that is short enough for sockets."""
    wanted = os.environ.get("RAY_TMPDIR")
    tried = []
    for parent in [wanted] if wanted else [tempfile.gettempdir(), "/tmp"]:
        if len(os.fsencode(parent)) > _LONGEST:
            tried.append(f"{parent}: its path has more than {_LONGEST} bytes, and sockets in it would have too many")
            continue
        try:
            mode = os.stat(parent).st_mode
            if mode & 0o022 and not mode & stat.S_ISVTX:
                tried.append(f"{parent}: others can rename what is in it")
                continue
            return Path(tempfile.mkdtemp(prefix="fedkd-", dir=parent))
        except OSError as error:
            tried.append(f"{parent}: {error.strerror}")
    raise InputError(f"There is no folder for Ray's sockets and logs; set RAY_TMPDIR. Tried: {'; '.join(tried)}.")


def _set_environment(values: dict[str, str | None]) -> dict[str, str | None]:
    """Set variables, of which None is to be absent, and let Ray read them again; return the values before."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    raylet: Any = ray._raylet
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    raylet.Config.initialize("")
    return before


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Let Ray take 127.0.0.1 as it stands. It would replace it by the address of a network card."""
    services: Any = ray._private.services
    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


def _drop_last_words() -> None:
    """Let Ray print no log of its dead process: `lost` says in one line what it means."""
    worker: Any = ray._private.worker
    show = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *texts, **options: None if lost() else show(*texts, **options)


@contextlib.contextmanager
def _private_files() -> Iterator[None]:
    """Let this process, and those that it starts, make files for their owner only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)

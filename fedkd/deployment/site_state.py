"""The state of a real site between requests: which one counts, in Flower's context, and on disk.

The server names its requests: `000003-000017` is the 17th of its run, in round 3; names sort as the requests do. With
each request it names the last one whose reply it has accepted. A state that a later request has left does not count:
its reply was refused, or late, or lost, or the server continues from an earlier checkpoint.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flwr.app import ConfigRecord, RecordDict
from flwr.app.user_config import UserConfig

from ..config import CheckpointConfig
from ..errors import InputError, on_one_line
from ..files import put_in_place
from ..runs import checkpoints

_FEDERATION = re.compile(r"[0-9a-f]{32}")
_REQUEST = re.compile(r"\d{6,9}-\d{6,9}")
_log = logging.getLogger("fedkd")


class Version(NamedTuple):
    """A site's state, and the name of the request that left it."""

    request: str
    state: RecordDict


def request_name(number: int, count: int) -> str:
    """Return the name of a request in round `number`, the server's `count`-th in its run."""
    return f"{number:06d}-{count:06d}"


def _round_of(request: str) -> int:
    return int(request.partition("-")[0])


# Flower's context


def versions_in(state: RecordDict) -> list[Version]:
    """Return the versions of a site's state that Flower's context contains, oldest first."""
    found: dict[str, RecordDict] = {}
    for path, record in state.items():
        request, slash, name = path.partition("/")
        if not slash:  # what sites have agreed on (`site_codec`)
            continue
        version = found.setdefault(request, RecordDict())
        if name:
            version[name] = record
    return [Version(request, found[request]) for request in sorted(found)]


def in_context(versions: Iterable[Version]) -> RecordDict:
    """Return versions of a site's state as Flower's context contains them."""
    state = RecordDict()
    for version in versions:
        state[f"{version.request}/"] = ConfigRecord()  # so that an empty state is a version too
        for name, record in version.state.items():
            state[f"{version.request}/{name}"] = record
    return state


# The files of a site's state


def state_folder(node_config: UserConfig, federation: str) -> Path | None:
    """Return the folder of a site's state in a federation; None if none is set. Raises InputError for a bad name."""
    if "state" not in node_config:
        return None
    if not _FEDERATION.fullmatch(federation):  # it is used as a folder's name
        raise InputError(f"the server calls the federation {on_one_line(federation, 40)!r}, which is no name of one.")
    return Path(str(node_config["state"])).expanduser() / federation


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can open, if it does not exist."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def requests_on_disk(folder: Path) -> list[str]:
    """Return the names of the requests whose states are in a folder, oldest first."""
    return sorted(path.stem.removeprefix("round-") for path in folder.glob("round-*.safetensors"))


def recall_state(folder: Path, accepted: str) -> tuple[Version | None, bool]:
    """Return the state that counts, None if there is none; and whether a newer state is damaged.

    `accepted`: the last request whose reply the server has accepted, empty if there is none. States of later requests
    are deleted, so that server and site continue from the same point. Raises InputError or OutOfReach for a file that
    the disk does not read; it stays.
    """
    damaged = False
    for request in reversed(requests_on_disk(folder)):
        path = _path(folder, request)
        if request > accepted:
            path.unlink()
            continue
        try:
            return Version(request, checkpoints.load_node(path)), damaged
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # the disk may read it the next time
                raise
            _log.error("%s It is passed over.", error)
            damaged = True
            path.unlink()
    return None, damaged


def keep_state(folder: Path, version: Version, every: CheckpointConfig, first_round: int) -> None:
    """Write the state that a request has left, and delete states that can no longer be needed.

    The one before is needed if the server refuses the reply. A restarted server continues from its last checkpoint, or
    from the one before if the last is incomplete; or from the round before `first_round`, if this run itself was
    resumed. Raises InputError for a bad name of the request.
    """
    if not _REQUEST.fullmatch(version.request):  # it is used as a file's name
        raise InputError(f"the server calls a request {on_one_line(version.request, 40)!r}, which is no name of one.")
    make_private(folder.parent)
    make_private(folder)
    path = _path(folder, version.request)
    partial = folder / f".{path.name}.partial"
    checkpoints.save_node(partial, version.state)
    put_in_place(partial, path)
    requests = requests_on_disk(folder)
    number = _round_of(version.request)
    last = number // every.every * every.every
    # an interrupted server continues from the round before
    marks = [number - 1, first_round - 1, *(last - step * every.every for step in range(every.keep + 1))]
    needed = {max((r for r in requests if _round_of(r) <= mark), default="") for mark in marks} | set(requests[-2:])
    for request in requests:
        if request not in needed:
            _path(folder, request).unlink()


def _path(folder: Path, request: str) -> Path:
    return folder / f"round-{request}.safetensors"

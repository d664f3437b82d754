"""The state of a real site between requests, on disk."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from flwr.app import RecordDict
from flwr.app.user_config import UserConfig

from ..config import CheckpointConfig
from ..errors import InputError, on_one_line
from ..runs import checkpoints

_FEDERATION = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger("fedkd")
_RUN = "run.json"

# The files of a site's state


def state_folder(node_config: UserConfig, federation: str) -> Path | None:
    """Return the folder of a site's state in a federation; None if none is set. Raises InputError for a bad name."""
    if "state" not in node_config:
        return None
    if not _FEDERATION.fullmatch(federation):  # it is used as a folder's name
        raise InputError(f"the server calls the federation {on_one_line(federation, 40)!r}, which is no name of one.")
    return Path(str(node_config["state"])).expanduser() / federation


def recall_state(folder: Path, run: int, first_round: int) -> tuple[RecordDict, bool]:
    """Return a site's state for a run, empty if there is none; and whether a newer state is damaged.

    `run`: Flower's run id, a new one if the server has been restarted. Such a run continues from a checkpoint: the
    site's states of rounds from `first_round` on are ignored, so that server and site continue from the same point.
    """
    if not _is_of(folder, run):
        for path in _kept(folder):
            if _round_of(path) >= first_round:
                path.unlink()
        _sign(folder, run)
    damaged = False
    for path in reversed(_kept(folder)):
        try:
            return checkpoints.load_node(path), damaged
        except InputError as error:
            _log.error("%s It is passed over.", error)
            damaged = True
            path.unlink()
    return RecordDict(), damaged


def _is_of(folder: Path, run: int) -> bool:
    """Return whether the newest state was written in a run."""
    try:
        return bool(json.loads((folder / _RUN).read_text(encoding="utf-8"))["run"] == run)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sign(folder: Path, run: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{_RUN}.partial"
    partial.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
    os.replace(partial, folder / _RUN)


def keep_state(
    folder: Path, run: int, number: int, state: RecordDict, every: CheckpointConfig, first_round: int
) -> None:
    """Write the site's state after a request of a round, and delete states that no restart can need.

    A restarted server continues from its last checkpoint, or from the one before if the last is incomplete; or from the
    round before `first_round`, if this run itself was resumed.
    """
    if not state and not _kept(folder):
        return
    if not _is_of(folder, run):
        _sign(folder, run)
    path = folder / f"round-{number:06d}.safetensors"
    partial = folder / f".{path.name}.partial"
    checkpoints.save_node(partial, state)
    os.replace(partial, path)
    rounds = [_round_of(old) for old in _kept(folder)]
    last = number // every.every * every.every
    # an interrupted server continues from the round before
    marks = [number, number - 1, first_round - 1, *(last - step * every.every for step in range(every.keep + 1))]
    needed = {max((r for r in rounds if r <= mark), default=-1) for mark in marks}
    for old in _kept(folder):
        if _round_of(old) not in needed:
            old.unlink()


def _kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))


def _round_of(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))

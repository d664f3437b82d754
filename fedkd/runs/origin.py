"""What a run began with: fingerprints of its images, partition, code files and versions, and what has changed since."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import Config, DistillConfig, to_table
from ..errors import InputError, on_one_line, reason_of
from ..files import refuse_shortage, write
from ..registry import digests_of_files
from .forms import OriginFile, read_form
from .metrics import versions

ORIGIN = "origin.json"

_CHANGES = "changes"  # accepted ones: from which round (or iteration) on, and what

Origin = dict[str, Any]  # {"images": hash, "partition": hash, "files": {name: hash}, "versions": {package: version}}


def origin_of(
    config: Config | DistillConfig, images: str, partition: str | None = None, known: Iterable[str] = ()
) -> Origin:
    """Return what a run begins with. `images`: the fingerprint of its sets; `partition`: that of who has which images.

    Files are those that the config names: strategies, models, partitions, those below their folders that they import,
    and what models are read from. `known`: names of such files from earlier (see `known_files`).
    """
    found: Origin = {
        "images": images,
        "files": digests_of_files(to_table(config), [*known, *_read_files(config)]),
        "versions": _compared_versions(),
    }
    return found if partition is None else {**found, "partition": partition}


def _read_files(config: Config | DistillConfig) -> list[str]:
    """Return the files that models are read from (weights, configs of transformers), and what real sites agree on."""
    sites = config.data.sites if isinstance(config, Config) else None
    found = [sites.spec] if sites is not None and sites.spec is not None else []
    for architecture in config.model.architectures:
        source, _, path = architecture.name.partition(":")
        found += [path, str(Path(path) / "config.json")] if source == "transformers" else []
        weights = architecture.options.get("weights")
        found += [weights] if isinstance(weights, str) else []
    return found


def _compared_versions() -> dict[str, str]:
    """Return the versions that can change results: no engine and no message format does."""
    return {name: found for name, found in versions().items() if name in ("fedkd", "torch", "torchvision", "numpy")}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what has changed between two origins, as texts. Parts that one of them lacks are skipped.

    A file that only `now` has is no change: a process may have imported it for something else.
    """
    found = []
    unlike = [
        part for part in ("images", "partition") if before.get(part) and now.get(part) and before[part] != now[part]
    ]
    if "images" in unlike:
        found.append("the images or labels of its sets")
    elif unlike:
        found.append("the partition, the public set or the test images of nodes")
    for part, text in (("files", "the file {0}"), ("versions", "{0} (it was {1}, is {2})")):
        old, new = before.get(part), now.get(part)
        if old is not None and new is not None:
            names = [name for name in sorted(old) if old[name] != new.get(name)]
            found += [text.format(name, old[name], new.get(name, "missing")) for name in names]
    return found


def write_origin(folder: Path, origin: Origin, *after: str) -> None:
    """Write what a run begins with into its folder; `after` as in `files.write`."""
    write(folder / ORIGIN, json.dumps(origin, indent=2).encode() + b"\n", *after)


def note_files(folder: Path, config: Config | DistillConfig) -> None:
    """Add the code files that a run has imported since it began, such as inside a function, to its origin."""
    before = read_origin(folder)
    if before is not None:
        now = digests_of_files(to_table(config))
        added = {name: digest for name, digest in now.items() if name not in before["files"]}
        if added:
            write_origin(folder, {**before, "files": {**before["files"], **added}})


def read_origin(folder: Path) -> Origin | None:
    """Return what the run in a folder began with; None if its file is missing.

    Raises InputError for a damaged file, OutOfReach if the machine is too short of something to read it.
    """
    path = folder / ORIGIN
    if not os.path.lexists(path):
        return None
    try:
        return read_form(path, OriginFile, folder)
    except (OSError, ValueError) as error:
        refuse_shortage(path, error)
        raise InputError(
            f"{path} cannot be read: {on_one_line(reason_of(error), 200)}. So nobody can say whether data, files or "
            "versions have changed since the run began; go on with --accept-changes, which records it."
        ) from error


def refuse_changes(folder: Path, now: Origin) -> None:
    """Raise InputError, which names each change, if a run in a folder began with other things than are there now."""
    before = read_origin(folder)
    if before is None:
        raise InputError(
            f"{folder}: its {ORIGIN} is missing, so nobody can say whether data, files or versions have changed since "
            "the run began; restore it, or go on with --accept-changes, which records it."
        )
    changed = differences(before, now)
    if changed:
        raise InputError(
            f"{folder}: changed since the run began: {'; '.join(changed)}. Its results would be of both: restore what "
            "has changed, run the config again in a new folder, or go on with --accept-changes, which records it."
        )


def go_on(folder: Path, now: Origin, number: int, *, accept_changes: bool, unit: str = "round") -> list[str]:
    """Compare a run's origin with what is there now, before it goes on from `number`; return the accepted changes.

    An accepted change is recorded in the run's origin. Raises InputError, which names each change, if there is one and
    it is not accepted.
    """
    if not accept_changes:
        refuse_changes(folder, now)
    try:
        before = read_origin(folder)
        changed = differences(before, now) if before is not None else [f"{ORIGIN} was missing"]
    except InputError:
        before, changed = None, [f"{ORIGIN} was damaged"]
    if changed:
        accepted = [*(before or {}).get(_CHANGES, []), {f"from_{unit}": number, "what": changed}]
        if (folder / ORIGIN).is_dir():
            shutil.rmtree(folder / ORIGIN)
        write_origin(folder, {**now, _CHANGES: accepted})
    return changed


def known_files(folder: Path) -> list[str]:
    """Return the names of the code files that the run in a folder has imported; empty if that is not known."""
    try:
        return list((read_origin(folder) or {}).get("files", {}))
    except InputError:
        return []


def accepted_changes(folder: Path) -> list[dict[str, Any]]:
    """Return the accepted changes of a run: from which round (or iteration) on, and what has changed."""
    return list((read_origin(folder) or {}).get(_CHANGES, []))

"""Files: reading those that anyone may have written, and writing our own whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, RunError, reason_of

_DEEPEST = 50  # lists and tables within each other
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(r"[\[\]{}]")
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_RETRY = (
    "What was complete is kept: free memory, allow more open files (ulimit -n) or mend the disk, then continue with "
    "--resume."
)
_SYNCS = 16  # files that wait for the disk at the same time: it writes them together
_RESUME = "What was complete is kept: mend the disk or make space, then continue with --resume."


class NotWritten(RunError):
    """A file that cannot be written: the disk is full, read-only, or its folder is gone."""


class OutOfReach(RunError):
    """A file of a run that cannot be read at this moment: too little memory, too many open files, a broken disk."""


# Reading


def refuse_odd(path: Path, home: Path | None = None) -> None:
    """Raise ValueError for what is no regular file: a pipe, a device, a folder; OSError for what is not there.

    `home`: a folder that may be a stranger's. No link may lead out of it.
    """
    if home is not None and leads_out(path, home):
        raise ValueError(f"it is a link to a place outside of {home}")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")


def leads_out(path: Path, home: Path) -> bool:
    """Return whether a path in a folder means, through links, something outside of it."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(home))


def read(path: Path, most: int, home: Path | None = None) -> bytes:
    """Return the content of a regular file of at most `most` bytes; `home` as in `refuse_odd`.

    Raises ValueError or OSError with the reason.
    """
    refuse_odd(path, home)
    with path.open("rb") as file:
        content = file.read(most + 1) if path.stat().st_size <= most else None
    if content is None or len(content) > most:
        raise ValueError(f"it is larger than {most / 1e6:.0f} MB")
    return content


def refuse_shortage(path: Path, error: Exception) -> None:
    """Raise OutOfReach for an error that comes from a machine short of memory or open files: the file may be whole."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORTAGES):
        raise OutOfReach(
            f"{path} cannot be read at this moment: {reason_of(error) or 'out of memory'}. {_RETRY}"
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a disk inside the `with` block into `OutOfReach`, with the path of what is read."""
    try:
        yield
    except OSError as error:
        raise OutOfReach(f"{path} cannot be read at this moment: {reason_of(error)}. {_RETRY}") from error


def parse_json(content: bytes | str) -> Any:
    """Return the value in a JSON text. Raises ValueError, also for what nobody can work with.

    That is: numbers of more than 64 bits, texts that are no UTF-8, and more than 50 lists and tables in each other.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        # a function for each whole number is slow, so it is called where there is a long one
        found = json.loads(text, parse_int=_whole if re.search(r"\d{19}", text) else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _depth(text) > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()  # half of a character cannot be encoded
    return found


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**64:
        raise ValueError(f"the number {digits[:20]}... is too large")
    return number


def _depth(text: str) -> int:
    deep = deepest = 0
    if text.count("[") + text.count("{") <= _DEEPEST:
        return 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        deep += 1 if bracket in "[{" else -1
        deepest = max(deep, deepest)
    return deepest


# Writing


def as_json(value: Any, indent: int | None = None) -> bytes:
    """Return a value as a JSON text and the end of its line. Numbers that are not finite are null: JSON has none."""
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_without_nan(value), indent=indent, allow_nan=False)
    return text.encode() + b"\n"


def as_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table as CSV: numbers in full, NaN and None as nothing, and no text that a spreadsheet computes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([as_cell(value) for value in row] for row in rows)
    return text.getvalue()


def as_cell(value: Any) -> Any:
    """Return a value as a cell of CSV: NaN and None as nothing, a text so that no spreadsheet computes it."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(tuple("=+-@＝＋－＠")) else value
    return "" if value is None or value != value else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def put(file: BinaryIO, content: bytes) -> None:
    """Write bytes to an open file. All that a run writes passes here."""
    file.write(content)
    file.flush()


def put_new(path: Path, content: bytes) -> None:
    """Write a new file; a file or link with this name is removed, not followed. Raises OSError."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        put(file, content)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a file, or a folder with all that is in it, its name once it is on the disk: a power cut finds it whole.

    Raises OSError.
    """
    if partial.is_dir():
        with ThreadPoolExecutor(_SYNCS) as pool:
            list(pool.map(_sync, [*partial.rglob("*"), partial]))
    else:
        _sync(partial)
    os.replace(partial, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, content: bytes, after: str = _RESUME) -> None:
    """Write a file, whole or not at all. Raises NotWritten, which says `after` it what to do."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path, lambda: len(content), after):
        try:
            put_new(partial, content)
            put_in_place(partial, path)
        except BaseException:  # also an interrupt
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def append(path: Path, content: bytes) -> None:
    """Add bytes to a file, which must be there, and wait until they are on the disk. Raises NotWritten."""
    with writing(path, lambda: len(content)):
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "the file was removed during the run")
        with path.open("ab") as file:
            put(file, content)
            os.fsync(file.fileno())


def write_output(path: Path, content: bytes) -> None:
    """Write what a command shows to where the user wants it, which may be a link or a device.

    Raises InputError if this is no place for a file, NotWritten if the disk refuses it.
    """
    if path.is_dir():
        raise InputError(f"{path} cannot be written: Is a directory")
    with (
        writing(path, lambda: len(content), "Make space, or name another place, and give the command again."),
        path.open("wb") as file,
    ):
        put(file, content)


@contextlib.contextmanager
def writing(path: Path, size: Callable[[], int] = lambda: 0, after: str = _RESUME) -> Iterator[None]:
    """Turn what goes wrong with a disk inside the `with` block into `NotWritten` with the path and the space.

    `size`: a function that returns about how many bytes are needed; 0 if they are few.
    """
    try:
        yield
    except OSError as error:
        home = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))
        space = f"{shutil.disk_usage(home).free / 1e6:.1f} MB are free there"
        space += f", about {size() / 1e6:.1f} MB are needed" if size() else ""
        if not path.parent.is_dir():
            raise NotWritten(
                f"{path} cannot be written: the folder {path.parent} was removed during the run."
            ) from error
        raise NotWritten(f"{path} cannot be written: {reason_of(error)}; {space}. {after}") from error

"""A disk that is full at the n-th write below a folder, as SQLite tests itself."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from fedkd import files
from fedkd.runs import checkpoints


@contextlib.contextmanager
def full_at(number: int, folder: Path) -> Iterator[list[str]]:
    """Let the `number`-th write below a folder fail, after half of its bytes; yield the writes so far.

    Writes are what passes `files.put`, and new folders and renamed files. 0: none fails.
    """
    seen: list[str] = []
    put, mkdir, replace = files.put, os.mkdir, os.replace

    def fails(what: str, place: Any) -> bool:
        if str(place).startswith(str(folder)):
            seen.append(f"{what} {place}")
            return len(seen) == number
        return False

    def put_or_fail(file: BinaryIO, content: bytes) -> None:
        if fails("write", file.name):
            put(file, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(file, content)

    def or_fail(what: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(path: Any, *args: Any, **kwargs: Any) -> None:
            # to make a folder that is there needs no space
            if not (what == "mkdir" and os.path.isdir(path)) and fails(what, path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            function(path, *args, **kwargs)

        return call

    with (
        mock.patch.object(files, "put", put_or_fail),
        mock.patch.object(os, "mkdir", or_fail("mkdir", mkdir)),
        mock.patch.object(os, "replace", or_fail("replace", replace)),
    ):
        yield seen


@contextlib.contextmanager
def unopened_at(number: int, code: int, folder: Path) -> Iterator[list[str]]:
    """Let the `number`-th file below a folder not be opened, with an error of the system; yield what was opened so far.

    Files are those that Python opens, to read or to write, and those that safetensors opens. 0: none fails.
    """
    seen: list[str] = []

    def or_fail(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(path, int) and str(path).startswith(str(folder)):
                seen.append(f"{path} {args or kwargs}")
                if len(seen) == number:
                    raise OSError(code, os.strerror(code), str(path))
            return function(path, *args, **kwargs)

        return call

    with (
        mock.patch.object(io, "open", or_fail(io.open)),
        mock.patch.object(builtins, "open", or_fail(builtins.open)),
        mock.patch.object(os, "open", or_fail(os.open)),
        mock.patch.object(os, "scandir", or_fail(os.scandir)),
        mock.patch.object(os, "listdir", or_fail(os.listdir)),
        mock.patch.object(checkpoints, "safe_open", or_fail(checkpoints.safe_open)),
    ):
        yield seen

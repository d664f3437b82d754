"""A disk that is full at the n-th write below a folder, as SQLite tests itself."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

from fedkd import files


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

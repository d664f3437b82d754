"""Refuses a file that would fill this machine's memory when it is read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection
from pathlib import Path

from ..errors import InputError
from ..files import refuse_odd

_SHARE = 0.5  # of the machine's memory that a set may take: models, batches and copies need the rest
_VALUE = 8  # bytes of a value of a table


def machine_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_large(size: int, path: Path, key: str, fix: str) -> None:
    """Raise InputError if a set of about `size` bytes in memory is too large for this machine. `fix`: what to do."""
    memory = machine_memory()
    if size > _SHARE * memory:
        raise InputError(
            f"{key}: {path} would take about {size / 1e9:.1f} GB of memory, more than half of this machine's "
            f"{memory / 1e9:.1f} GB; {fix}."
        )


def size_of_npz(path: Path, names: Collection[str]) -> int:
    """Return the bytes that the named arrays of a NumPy archive take, as it says; 0 for one that cannot be read."""
    try:
        refuse_odd(path)
        with zipfile.ZipFile(path) as archive:
            return sum(one.file_size for one in archive.infolist() if one.filename.removesuffix(".npy") in names)
    except Exception:  # zip files raise many types; who reads the arrays says what is wrong
        return 0


def size_of_parquet(paths: Collection[Path]) -> int:
    """Return about how many bytes the rows of Parquet files take, by what the files say of themselves."""
    from pyarrow.parquet import read_metadata

    size = 0
    for path in paths:
        about = read_metadata(path)
        stored = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
        size += max(about.num_rows * about.num_columns * _VALUE, stored)  # texts have more bytes
    return size

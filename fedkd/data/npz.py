"""Sets in NumPy files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, MissingFiles, on_one_line, reason_of
from ..files import refuse_odd
from .arrays import NAMES, NEEDED, from_arrays
from .memory import machine_memory, refuse_large, size_of_npz
from .samples import SOURCE, Dataset

_MOST_PACKED, _MOST_RATIO = 2**28, 100  # bytes that an archive may become whatever its size; and how often its size


def from_npz(path: Path, config: SetsConfig | None = None) -> Dataset:
    """Return the set in a NumPy archive; see `from_arrays` for what it has. Raises InputError for a missing, damaged or
    wrong file.
    """
    if not path.exists():
        raise MissingFiles(f"{SOURCE}: there is no file {path}.")
    refuse_large(size_of_npz(path, NAMES), path, SOURCE, "write its arrays as .npy files into a folder")
    try:
        arrays = read_arrays(path, NAMES)
    except ValueError as error:
        reason = str(error)
        raise InputError(
            f"{SOURCE}: {path} is not a NumPy archive of plain arrays, or is damaged: {reason}."
        ) from error
    return _whole(arrays, path, config)


def from_npy_folder(folder: Path, config: SetsConfig) -> Dataset:
    """Return the set in a folder of NumPy files, `x_train.npy`, ..., which are mapped: a part is read when it is used.

    Nothing is written to the files.
    Images and free arrays stay mapped; of other kinds, all is read to learn how they are encoded. Raises InputError for
    missing and damaged files.
    """
    arrays = {}
    for name in NAMES:
        path = folder / f"{name}.npy"
        if not path.exists():
            continue
        try:
            refuse_odd(path)
            arrays[name] = np.load(path, mmap_mode="c", allow_pickle=False)
        except Exception as error:  # NumPy raises many types for damaged files
            reason = on_one_line(reason_of(error) or type(error).__name__, 200)
            raise InputError(
                f"{SOURCE}: {path} is not a NumPy file of a plain array, or is damaged: {reason}."
            ) from error
    return _whole(arrays, folder, config)


def _whole(arrays: dict[str, np.ndarray], path: Path, config: SetsConfig | None) -> Dataset:
    if missing := [key for key in NEEDED if key not in arrays]:
        raise InputError(f"{SOURCE}: {path} lacks {', '.join(missing)}; it needs {', '.join(NEEDED)}.")
    return from_arrays(arrays, config or SetsConfig(), str(path))


def read_arrays(path: Path, names: Collection[str], home: Path | None = None) -> dict[str, np.ndarray]:
    """Return those of the named arrays that a NumPy archive has; `home` as in `files.refuse_odd`.

    What an array claims to need is compared with what the archive has, and with the memory, before memory is taken.
    Raises ValueError with the reason for what cannot be read.
    """
    try:
        refuse_odd(path, home)
        with path.open("rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it is one array (.npy)")
        with zipfile.ZipFile(path) as archive:
            found = {name: info for info in archive.infolist() if (name := info.filename.removesuffix(".npy")) in names}
            _refuse_bomb(path.stat().st_size, sum(info.file_size for info in found.values()))
            arrays = {}
            for name, info in found.items():
                with archive.open(info) as member:
                    _refuse_claim(name, info.file_size, member)
                with archive.open(info) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
            return arrays
    except Exception as error:  # zip, zlib and NumPy raise many types for damaged files
        raise ValueError(on_one_line(reason_of(error) or type(error).__name__, 200)) from error


def _refuse_bomb(stored: int, whole: int) -> None:
    memory = machine_memory()
    if whole > memory:
        raise ValueError(f"its arrays have {whole / 1e9:.1f} GB, this machine has {memory / 1e9:.1f} GB of memory")
    if whole > _MOST_PACKED and whole > _MOST_RATIO * stored:
        raise ValueError(
            f"{stored / 1e6:.1f} MB would become {whole / 1e9:.1f} GB, more than images do; if that is meant, write it "
            "with np.savez, which does not compress"
        )


def _refuse_claim(name: str, size: int, member: IO[bytes]) -> None:
    """Raise ValueError if an array's header does not fit the bytes that follow it."""
    version = np.lib.format.read_magic(member)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"{name} has a header of version {version[0]}.{version[1]}")
    shape, _, dtype = reader(member)
    if dtype.hasobject:
        raise ValueError(f"{name} has Python objects, which are not loaded")
    if dtype.itemsize == 0:
        raise ValueError(f"{name} has values of no bytes, of which a file can claim any number")
    if math.prod(shape) * dtype.itemsize != size - member.tell() or min(shape, default=0) < 0:
        raise ValueError(f"{name} claims to be {dtype}, {' x '.join(map(str, shape))}, which its size does not fit")

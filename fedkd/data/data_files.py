"""`data.file`: the set in a file or folder, by what it is."""

from __future__ import annotations

from pathlib import Path

from ..config import SetsConfig
from ..errors import InputError, MissingFiles, some
from .hugging_face import MARKS, from_saved
from .npz import from_npy_folder, from_npz
from .samples import Dataset
from .table_files import PARQUET_ENDINGS, TEXT_ENDINGS, from_rows

KEY = "data.file"


def from_file(path: Path, config: SetsConfig) -> Dataset:
    """Return the set in a file (.csv, .tsv, .parquet, .npz) or in a folder.

    A folder has Parquet files, or `x_train.npy` and its like, or what Hugging Face's `save_to_disk` writes. Raises
    InputError for what is none of these, and for what they refuse.
    """
    if not path.exists():
        raise MissingFiles(f"{KEY}: there is no file {path}.")
    if path.is_dir():
        names = sorted(one.name for one in path.iterdir())
        if any(name in names for name in MARKS):
            return from_saved(path, config)
        if "x_train.npy" in names:
            return from_npy_folder(path, config)
        if any(name.lower().endswith(PARQUET_ENDINGS) for name in names):
            return from_rows(path, config)
        raise InputError(
            f"{KEY} = {str(path)!r}: the folder has neither Parquet files, nor x_train.npy, nor what Hugging Face's "
            f"save_to_disk writes; it has {some(names, 5) or 'nothing'}. For folders of images, set data.name = "
            "'images:<folder>'."
        )
    if path.suffix.lower() == ".npz":
        return from_npz(path, config)
    if path.suffix.lower() in (*TEXT_ENDINGS, *PARQUET_ENDINGS):
        return from_rows(path, config)
    raise InputError(f"{KEY} = {str(path)!r}: valid are files that end in .csv, .tsv, .parquet or .npz, and folders.")

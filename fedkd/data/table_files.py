"""Sets in files of rows: CSV, TSV, Parquet and folders of Parquet. Their columns become a table, or texts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import SetsConfig
from ..errors import InputError, on_one_line, reason_of, some
from .memory import refuse_large, size_of_parquet
from .rows import KEY, check_names, pandas, rows_of
from .samples import Dataset, Samples
from .table_columns import table_of
from .tasks import in_task
from .tokens import texts_as_tokens

if TYPE_CHECKING:
    import pandas as pd

TEXT_ENDINGS, PARQUET_ENDINGS = (".csv", ".tsv"), (".parquet", ".pq")
_ABSENT = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL"]  # cells of a CSV file without a value


def from_rows(path: Path, config: SetsConfig) -> Dataset:
    """Return the set in a CSV, TSV or Parquet file, or in a folder of Parquet files, by the columns of a config.

    Raises InputError for what cannot be read, and for columns that do not fit.
    """
    return from_frame(read_frame(path, texts=config.text is not None), config, str(path))


def read_frame(path: Path, *, texts: bool) -> pd.DataFrame:
    """Return the rows of a CSV, TSV or Parquet file, or of a folder of Parquet files; `texts`: whether cells are texts.

    Raises InputError for what cannot be read.
    """
    module = pandas()
    frame: pd.DataFrame
    try:
        if path.suffix.lower() in TEXT_ENDINGS:
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            _check_head(path, separator)
            refuse_large(path.stat().st_size, path, KEY, "write it as Parquet, with the columns that you use")
            absent = _ABSENT[:1] if texts else _ABSENT  # a text may be "null"
            frame = module.read_csv(path, sep=separator, keep_default_na=False, na_values=absent, low_memory=False)
        else:
            files = [one for one in path.rglob("*") if one.suffix in PARQUET_ENDINGS] if path.is_dir() else [path]
            fix = "leave out columns or rows, or write arrays as .npy files into a folder"
            refuse_large(size_of_parquet(files), path, KEY, fix)
            _check_parts(path)
            frame = module.read_parquet(path)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{KEY}: {path} is not UTF-8: {reason_of(error)}; save it as UTF-8.") from error
    except Exception as error:  # parsers raise many types for damaged files
        reason = on_one_line(reason_of(error) or str(error), 200)
        raise InputError(f"{KEY}: {path} cannot be read: {reason}.") from error
    return frame


def _check_parts(path: Path) -> None:
    """Raise InputError for a folder whose first file lacks a column of another: the reader would leave it out."""
    if not path.is_dir():
        return
    from pyarrow.parquet import read_schema

    files = sorted(one for ending in PARQUET_ENDINGS for one in path.rglob(f"*{ending}"))
    schemas = {one: read_schema(one).names for one in files}
    for one in files[1:]:
        if lacking := sorted(set(schemas[one]) - set(schemas[files[0]])):
            raise InputError(
                f"{KEY}: {one.name} in {path} has columns that {files[0].name} lacks: {some(lacking)}; give all files "
                "the same columns."
            )


def _check_head(path: Path, separator: str) -> None:
    """Raise InputError for names that are there twice, and for a row with more cells: pandas would change the names."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        names = next(reader, [])
        row = next(reader, [])
    if len(row) > len(names):
        hint = "; its columns are not separated by commas" if len(names) == 1 and ";" in names[0] else ""
        raise InputError(f"{KEY}: {path} has {len(names)} columns, but {len(row)} cells in its first row{hint}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{KEY}: {path} has {len(twice)} column names twice: {some(twice)}.")


def from_frame(frame: pd.DataFrame, config: SetsConfig, where: str, classes: tuple[str, ...] | None = None) -> Dataset:
    """Return the set in a data frame; `where` names it in errors. `classes`: their names, if the file has them."""
    wanted = "table" if config.text is None else "tokens"
    if config.kind not in (None, wanted):
        raise InputError(
            f"data.kind = {config.kind!r}: the columns of {where} are a table, or with data.text tokens; remove kind."
        )
    notes: list[str] = []
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))  # of a file, a named one is data
    frame.columns = [str(name) for name in frame.columns]
    check_names(list(frame.columns), config, where)
    rows = rows_of(frame, config, where, notes, classes)
    frame = frame.iloc[rows.kept].reset_index(drop=True)
    used = {*config.labels, config.node, config.split, config.time, *config.drop}
    inputs = frame[[name for name in frame.columns if name not in used]]
    if config.text is not None:
        if others := [name for name in inputs.columns if name != config.text]:
            notes.append(f"only the texts of {config.text!r} are used, not the columns {some(others)}")
        values, spec = texts_as_tokens(inputs[config.text].tolist(), config, notes)
    else:
        unseen = rows.is_test if rows.is_validation is None else rows.is_test | rows.is_validation
        values, spec = table_of(inputs, rows.labels, unseen, config, where, notes)
    both = Samples(values, rows.labels)
    train, test = map(both.take, rows.of_parts())
    nodes, held = rows.nodes_of_parts(), rows.validation_of_training()
    found = Dataset(train, test, rows.classes, spec=spec, nodes=nodes, notes=tuple(notes), validation=held)
    return in_task(found, config)

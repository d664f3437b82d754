"""The partitioners of flwr_datasets as schemes: they get a few small columns, and say which node has which row."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError, nearest, unknown
from ..registry import errors_of, find, options

KEY = "data.partition"
PACKAGE = "flwr_datasets"
_ROW = "__row"
_UNFIT = {  # parts of the names of classes
    "Vertical": "it gives columns to nodes, not rows",
    "IdToSizeFnc": "it needs a function, which a config cannot give",
}


def is_flowers(scheme: object) -> bool:
    """Return whether a scheme is a partitioner of flwr_datasets, or a class made from one."""
    return inspect.isclass(scheme) and any(one.__module__.split(".")[0] == PACKAGE for one in scheme.__mro__)


def find_partitioner(name: str) -> Any:
    """Return the class of flwr_datasets with a name. Raises InputError if the package is not there, or it is unfit."""
    for part, reason in _UNFIT.items():
        if part in name.rpartition(":")[2]:
            raise InputError(f"{KEY}.scheme = {name!r}: {reason}.")
    try:
        import flwr_datasets.partitioner as module
    except ImportError as error:
        raise InputError(f"{KEY}.scheme = {name!r} needs flwr-datasets: pip install 'fedkd[hub]'.") from error
    where, _, wanted = name.rpartition(":")
    valid = [one for one in dir(module) if one.endswith("Partitioner") and not one.startswith((*_UNFIT, "Partitioner"))]
    if where == f"{PACKAGE}.partitioner" and wanted not in valid:
        raise unknown(f"{KEY}.scheme", name, [f"{where}:{one}" for one in valid])
    return find("partitions", name, f"{KEY}.scheme")


def flower_parts(
    scheme: Any, name: str, table: Mapping[str, Any], columns: Mapping[str, np.ndarray], seed: int
) -> tuple[list[np.ndarray], str | None]:
    """Return the rows of each node, and the column that the partitioner looked at, if it looks at one.

    `columns`: what `partition_by` may name: `label`, `node`, and the columns of a table. `seed`: of the partitioner, if
    `table` has none. Raises InputError for wrong options, and for what the partitioner refuses.
    """
    import datasets

    parameters = inspect.signature(scheme).parameters
    given = dict(table)
    if "seed" in parameters:
        given.setdefault("seed", seed)
    if "partition_by" in parameters:
        given.setdefault("partition_by", "node" if "Natural" in scheme.__name__ else "label")
    key, matrix = "distribution_array", None
    if key in parameters and isinstance(given.get(key), list):
        given[key] = matrix = np.array(given[key], np.float64)
    chosen = options(scheme, given, KEY, common=("scheme", "minimum", "seed"))
    if matrix is not None:
        chosen[key] = matrix
    by = chosen.get("partition_by")
    count = len(columns["label"])
    if (nodes := chosen.get("num_partitions") or 0) > count:
        raise InputError(f"{KEY}.num_partitions = {nodes}: {nodes} samples are needed, but there are {count}.")
    small: dict[str, Any] = {"label": columns["label"].tolist(), _ROW: list(range(count))}
    if by is not None:
        if by not in columns:
            raise InputError(f"{KEY}.partition_by = {by!r}: the set has no such column{nearest(by, columns)}")
        values = columns[by]
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise InputError(f"{KEY}.partition_by = {by!r}: {int(np.isnan(values).sum())} values are missing there.")
        small[by] = values.tolist()
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        # the package warns of rows that nobody gets; fedkd counts them
        with errors_of(name, f"{KEY}.scheme"), warnings.catch_warnings(action="ignore"):
            partitioner = scheme(**chosen)
            partitioner.dataset = datasets.Dataset.from_dict(small)
            found = [partitioner.load_partition(node)[_ROW] for node in range(partitioner.num_partitions)]
    finally:
        if shown:
            datasets.utils.enable_progress_bars()
    return [np.array(list(rows), np.int64) for rows in found], by

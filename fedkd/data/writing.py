"""Writes each node's samples as a set of its own, for tests with real sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .federated_data import FederatedData
from .rows import pandas
from .samples import Samples
from .spec import DataSpec

LABEL, SPLIT = "label", "split"  # columns of a written table; with underscores if the table has such columns


def write_sets(data: FederatedData, folder: Path) -> list[Path]:
    """Write each node's samples as a separate set, and return the paths: tables as Parquet, others as npz.

    `node-<n>.parquet` has the columns `label`, or those of several labels or targets, and `split` beside those of the
    table. Raises InputError for validation samples of nodes, which an npz has no place for, and for images with noise,
    which are no pixels.
    """
    if data.noise is not None:
        raise InputError(
            "data.noise: images with noise are beyond the range of pixels; write the sets without this key."
        )
    if data.validation_parts is not None and data.spec.kind != "table":
        raise InputError(
            "data.node_validation: an npz has no place for validation samples; write the sets without this key, and "
            "set it in the config of the sites: each takes its own."
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for node in range(data.clients):
        parts = {"train": data.train_of(node), "test": data.test_of(node)}
        if (held := data.validation_of(node)) is not None:
            parts["validation"] = held
        path = folder / f"node-{node}.{'parquet' if data.spec.kind == 'table' else 'npz'}"
        if data.spec.kind == "table":
            frame_of(parts, data.spec, data.node_classes).to_parquet(path, index=False)
        else:
            np.savez_compressed(path, **_arrays(parts, data.spec), classes=np.array(data.node_classes))
        paths.append(path)
    return paths


def frame_of(parts: dict[str, Samples], spec: DataSpec, classes: tuple[str, ...]) -> Any:
    """Return rows as a pandas data frame: the columns of the table, then `label` or labels, and `split`: their part."""
    rows = np.concatenate([part.inputs for part in parts.values()])
    columns: dict[str, Any] = {}
    for place, column in enumerate(spec.columns):
        if column.categories is None:
            columns[column.name] = rows[:, place]
        else:
            names = np.array([*column.categories, None], object)
            columns[column.name] = names[np.nan_to_num(rows[:, place], nan=len(names) - 1).astype(np.int64)]
    label, split = ("_" * sum(name.lstrip("_") == own for name in columns) + own for own in (LABEL, SPLIT))
    if spec.task == "classification":
        columns[label] = [classes[one] for part in parts.values() for one in part.labels]
    else:
        labels = np.concatenate([part.labels for part in parts.values()])
        columns |= {name: labels[:, place] for place, name in enumerate(classes)}
    columns[split] = [name for name, part in parts.items() for _ in part.labels]
    return pandas().DataFrame(columns)


def _arrays(parts: dict[str, Samples], spec: DataSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in parts.items():
        inputs = part.inputs
        if spec.kind == "image":
            inputs = inputs.transpose(0, 2, 3, 1)
        found[f"x_{name}"], found[f"y_{name}"] = inputs, part.labels
    if spec.kind != "image" or spec.largest is None:
        found["kind"] = np.array(spec.kind)
    if spec.kind == "series" and spec.columns:
        found["channels"] = np.array([column.name for column in spec.columns])
    if spec.kind == "tokens":
        found["words"] = np.array(spec.words)
    return found

"""The nodes x nodes weights that a method logs: in the round's line, or for many nodes in a file of their own."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.log import drawable
from ..data.npz import read_arrays
from ..files import write, writing

_MOST_NODES = 100  # a line of metrics.jsonl has the matrix of at most so many nodes: 1,000 nodes would be 10 MB a round
_KEPT = 3  # files, of the last rounds
_FOLDER = Path("logs") / "weights"


def keep_apart(log: dict[str, Any], number: int, home: Path) -> dict[str, Any]:
    """Return a round's log for its line. A matrix of more than 100 nodes is written to a file in the run folder `home`.

    The file is `logs/weights/round-<number>.npz` with `weights` (float32, receivers x senders) and `nodes`; those of
    the last three rounds are kept. The line then has `summary(weights)` in place of the matrix.
    """
    rows = log.get("weights")
    if not drawable(log, "weights") or not rows or not len(rows) == len(rows[0]) > _MOST_NODES:
        return log
    weights = np.array(rows)
    for folder in (home / _FOLDER.parent, home / _FOLDER):  # `home` is there, or was removed and does not come back
        with writing(folder):
            folder.mkdir(exist_ok=True)
    packed = io.BytesIO()
    np.savez_compressed(packed, weights=weights.astype(np.float32), nodes=np.array(log.get("nodes", range(len(rows)))))
    write(_file(home, number), packed.getvalue())
    for old in sorted((home / _FOLDER).glob("round-*.npz"))[:-_KEPT]:
        old.unlink()
    return {**log, "weights": summary(weights)}


def summary(weights: np.ndarray) -> dict[str, Any]:
    """Return mean, least and largest weight on and off the diagonal, and the mean entropy of a row, in nats."""
    on = np.eye(len(weights), dtype=bool)
    parts = {"diagonal": weights[on], "off_diagonal": weights[~on]}
    found: dict[str, Any] = {
        name: {"mean": float(part.mean()), "min": float(part.min()), "max": float(part.max())}
        for name, part in parts.items()
    }
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return {**found, "mean_entropy": float(-(weights * logs).sum(1).mean())}


def last_matrix(lines: Sequence[dict[str, Any]], home: Path) -> tuple[int, list[Any], np.ndarray] | None:
    """Return the round, the nodes and the matrix, nodes x nodes, of the last weights that a run has logged.

    None if there are none, or if their file in the run folder `home` is missing or cannot be read.
    """
    line = next(
        (
            line
            for line in reversed(lines)
            if drawable(line["log"], "nodes")
            and (isinstance(line["log"].get("weights"), dict) or drawable(line["log"], "weights"))
        ),
        None,
    )
    if line is None:
        return None
    number, nodes, weights = line["round"], line["log"]["nodes"], line["log"]["weights"]
    if isinstance(weights, dict):
        try:
            weights = read_arrays(_file(home, number), ["weights"], home).get("weights")
        except ValueError:
            return None
    matrix = np.array(weights)
    if matrix.shape != (len(nodes), len(nodes)) or matrix.dtype.kind not in "fiu" or not np.isfinite(matrix).all():
        return None
    return number, nodes, matrix


def _file(home: Path, number: int) -> Path:
    return home / _FOLDER / f"round-{number:06d}.npz"

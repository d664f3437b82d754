"""Count, mean and sum of squares about the mean of values, which merge part by part as Chan et al. do (1979)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np

from .spec import DataSpec

_CHUNK = 4096  # samples whose values are summed together
_ROUNDING = 1e-13  # of the mean: a deviation up to this is rounding, and the values are all equal


class Moments(NamedTuple):
    """Of each column (or channel, or target): how many values, their mean, their summed squares about it; float64."""

    counts: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    def merged(self, other: Moments) -> Moments:
        """Return the moments of both parts together."""
        total = self.counts + other.counts
        step = np.where(total > 0, other.counts / np.maximum(total, 1), 0)
        squares = self.squares + other.squares + (other.mean - self.mean) ** 2 * self.counts * step
        return Moments(total, self.mean + (other.mean - self.mean) * step, squares)

    @property
    def deviation(self) -> np.ndarray:
        """Return the population deviation of each column; 1 where all values are equal."""
        return or_one(np.sqrt(self.squares / np.maximum(self.counts, 1)), self.mean)


def or_one(deviation: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return deviations with 1 in place of those that are 0, but for rounding of the mean."""
    return np.where(deviation > _ROUNDING * np.abs(mean), deviation, 1.0)


def nothing(columns: int) -> Moments:
    """Return the moments of no values."""
    return Moments(np.zeros(columns), np.zeros(columns), np.zeros(columns))


def merged(parts: Iterable[Moments], columns: int) -> Moments:
    """Return the moments of all parts together, merged in the order of the parts."""
    return reduce(Moments.merged, parts, nothing(columns))


def moments(pool: np.ndarray, rows: np.ndarray, by_column: Callable[[np.ndarray], np.ndarray], columns: int) -> Moments:
    """Return the moments of the samples `pool[rows]`, without NaN.

    `by_column`: from samples, float64, N x ..., to the values of each column, columns x values.
    """
    return merged((_of_part(pool[part], by_column) for part in chunks(rows)), columns)


def _of_part(samples: np.ndarray, by_column: Callable[[np.ndarray], np.ndarray]) -> Moments:
    # contiguous: sums depend on the order of values in memory, which a mapped file may have changed
    values = np.ascontiguousarray(by_column(np.ascontiguousarray(samples, np.float64)))
    here = np.isfinite(values)
    count = here.sum(1).astype(np.float64)
    center = np.where(here, values, 0).sum(1) / np.maximum(count, 1)
    return Moments(count, center, (np.where(here, values - center[:, None], 0) ** 2).sum(1))


def chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield positions in parts of a fixed size."""
    for first in range(0, len(rows), _CHUNK):
        yield rows[first : first + _CHUNK]


def scaled_columns(spec: DataSpec) -> int:
    """Return how many means the codec of samples has: one per numeric column or channel; of an array, one."""
    if spec.kind in ("image", "series"):
        return spec.shape[0]
    return {"table": len(spec.numeric()), "array": 1, "tokens": 0}[spec.kind]


def by_column(spec: DataSpec) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from samples of a kind, N x ..., to the values that one mean and deviation scale together.

    It returns columns x values, which are NaN where they are missing. Images are in the range 0 to 1, if `spec.largest`
    is set. Of a table it takes all columns, and returns the numeric ones.
    """
    if spec.kind == "array":
        return lambda part: part.reshape(1, -1)
    if spec.kind == "table":
        numeric = spec.numeric()
        return lambda part: part[:, numeric].T
    scale = spec.largest or 1.0
    return lambda part: np.moveaxis(part / scale, 1, 0).reshape(spec.shape[0], -1)

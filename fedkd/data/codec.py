"""Codecs: what training samples say about scaling, missing values and categories, and how it encodes samples.

A codec is fitted on the training samples of the nodes, and on no others. Raw samples stay raw in memory; batches are
encoded when they are made. Arithmetic: means and population deviations in float64 over what is not missing; a
deviation of 0 becomes 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..errors import InputError
from .moments import by_column, chunks, moments, scaled_columns
from .samples import LARGEST
from .spec import MASKED, UNKNOWN, DataSpec, Form

Scaling = Literal["standard", "quantile", "instance", "none"]
Missing = Literal["mean", "median", "indicator", "refuse", "zero", "hold"]
MOST_UNSEEN = 0.5  # of a node's values of a column: the largest share that training rows may lack
_EDGES = 1000  # quantiles of a column
_FAR = 20.0  # deviations: an image whose mean is farther away is not in the range that was named


@dataclass(frozen=True)
class Codec:
    """Encodes raw samples of `spec`; see `Form` for what comes out.

    `mean`, `deviation`: of each channel (image, series), of each numeric column (table), of all values (array).
    `fill`: in place of a missing number of each numeric column; `indicators`: the numeric columns, by their position
    among these, that have a column of 1 where a value is missing. `edges`: the quantiles of each numeric column, if
    they scale it. `codes`: for each categorical column the code of each raw code, which counts from 0; of tokens, one.
    """

    spec: DataSpec
    mean: np.ndarray
    deviation: np.ndarray
    fill: np.ndarray = field(default_factory=lambda: np.zeros(0))
    indicators: tuple[int, ...] = ()
    edges: np.ndarray | None = None
    codes: tuple[np.ndarray, ...] = ()
    instance: bool = False  # a series is scaled by its own mean and deviation
    target_mean: np.ndarray = field(default_factory=lambda: np.zeros(0))  # of each target of a regression
    target_deviation: np.ndarray = field(default_factory=lambda: np.ones(0))
    learned: bool = True  # else its numbers mean nothing: real sites have not agreed on them yet

    @property
    def form(self) -> Form:
        """Return the form of encoded samples."""
        kind, shape = self.spec.kind, self.spec.shape
        cards = tuple(int(codes.max(initial=0)) + 1 for codes in self.codes)
        if kind == "table":
            return Form(kind, (len(self.fill) + len(self.indicators) + len(cards),), cards)
        if kind == "series":
            return Form(kind, (shape[0] + 1, shape[1]))
        if kind == "tokens":
            return Form(kind, shape, vocabulary=max(cards[0], UNKNOWN + 1))
        return Form(kind, shape)

    @property
    def groups(self) -> list[int]:
        """Return for each value of an encoded row the column that it belongs to: an indicator's is its number's."""
        numbers = len(self.fill)
        return [*range(numbers), *self.indicators, *range(numbers, numbers + len(self.codes))]

    @property
    def hash(self) -> str:
        """Return a hash of the description and of all that was learned; empty if nothing was."""
        if not self.learned:
            return ""
        digest = hashlib.blake2b(self.spec.canonical().encode(), digest_size=12)
        for array in self._arrays():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _arrays(self) -> Iterator[np.ndarray]:
        yield from (self.mean, self.deviation, self.fill, np.array(self.indicators), np.array(self.instance))
        yield from ([] if self.edges is None else [self.edges])
        yield from self.codes
        yield from (self.target_mean, self.target_deviation)

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Return labels as a loss takes them: classes as they are, targets with mean 0 and deviation 1, float32."""
        if self.spec.task == "classification":
            return labels
        if self.spec.task == "regression":
            labels = (labels - self.target_mean) / self.target_deviation
        return labels.astype(np.float32)

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """Return a model's outputs for a regression in the targets' units, N x targets, float64."""
        return outputs.astype(np.float64) * self.target_deviation + self.target_mean


def fit(
    spec: DataSpec,
    pool: np.ndarray,
    rows: np.ndarray,
    *,
    scaling: Scaling = "standard",
    missing: Missing = "mean",
    min_count: int = 1,
    mean: Iterable[float] | None = None,
    deviation: Iterable[float] | None = None,
) -> Codec:
    """Return the codec that the samples `pool[rows]` give, the training samples of all nodes.

    `mean`, `deviation`: given ones, of images, in the range 0 to 1 if `spec.largest` is set. `min_count`: categories
    and words that are rarer become unknown. Raises InputError for values that nothing can be learned from.
    """
    if spec.kind == "table":
        return _fit_table(spec, pool[rows], scaling, missing, min_count)
    if spec.kind == "tokens":
        if not spec.learned:
            return Codec(spec, np.zeros(0), np.ones(0), codes=(np.arange(len(spec.words)),))
        counts = np.zeros(max(len(spec.words), UNKNOWN + 1), np.int64)
        for part in chunks(rows):
            counts += np.bincount(pool[part].ravel(), minlength=len(counts))
        return Codec(spec, np.zeros(0), np.ones(0), codes=(_word_codes(counts, min_count),))
    if scaling == "quantile":
        raise InputError(f"data.scaling = 'quantile' is for tables; the samples are {spec.noun(2)}.")
    plain = scaling in ("none", "instance") or mean is not None
    if spec.kind == "array":
        return Codec(spec, np.zeros(1), np.ones(1)) if plain else _measured(spec, pool, rows)
    channels = spec.shape[0]
    if plain and spec.kind == "series":
        return Codec(spec, np.zeros(channels), np.ones(channels), instance=scaling == "instance")
    if plain and mean is None:
        return Codec(spec, np.zeros(channels), np.ones(channels))
    if mean is not None and deviation is not None and spec.largest == LARGEST["uint8"]:  # no other range
        return Codec(spec, np.array([*mean], np.float64), np.array([*deviation], np.float64))
    learned = _measured(spec, pool, rows)
    if mean is None or deviation is None:
        return learned
    given = Codec(spec, np.array([*mean], np.float64), np.array([*deviation], np.float64))
    far = np.abs((learned.mean - given.mean) / given.deviation).max(initial=0.0)
    if far > _FAR:
        raise InputError(
            f"data.mean = {given.mean.tolist()}: the {spec.noun(2)} have a mean of {learned.mean.round(4).tolist()}, "
            f"{far:.0f} deviations away; they are in another range."
        )
    return given


def without_numbers(spec: DataSpec, targets: int) -> Codec:
    """Return the codec of samples of which nothing is known but their description: all categories are known ones."""
    count, numbers = scaled_columns(spec), len(spec.numeric())
    lengths = [len(spec.columns[place].categories or ()) for place in spec.categorical()]
    codes = [np.arange(1, length + 1) for length in lengths]
    return Codec(
        spec,
        np.zeros(count),
        np.ones(count),
        fill=np.zeros(numbers if spec.kind == "table" else 0),
        codes=(np.arange(len(spec.words)),) if spec.kind == "tokens" else tuple(codes),
        target_mean=np.zeros(targets),
        target_deviation=np.ones(targets),
        learned=False,
    )


def _measured(spec: DataSpec, pool: np.ndarray, rows: np.ndarray) -> Codec:
    found = moments(pool, rows, by_column(spec), scaled_columns(spec))
    return Codec(spec, found.mean, found.deviation)


def refuse_missing(spec: DataSpec, rows: np.ndarray) -> None:
    """Raise InputError, which names the worst column, if numbers of these rows are missing."""
    absent = np.isnan(rows[:, spec.numeric()])
    if absent.any():
        worst = spec.columns[spec.numeric()[int(absent.sum(0).argmax())]].name
        raise InputError(
            f"data.missing = 'refuse': {int(absent.sum())} numbers are missing, {int(absent.sum(0).max())} of them in "
            f"column {worst!r}; set 'mean', 'median' or 'indicator'."
        )


def _fit_table(spec: DataSpec, rows: np.ndarray, scaling: Scaling, missing: Missing, min_count: int) -> Codec:
    numbers = rows[:, spec.numeric()]
    absent = np.isnan(numbers)
    for place, column in enumerate(spec.numeric()):
        if len(rows) and absent[:, place].all():
            raise InputError(f"data: column {spec.columns[column].name!r} has no value in any training row; drop it.")
    if missing == "refuse":
        refuse_missing(spec, rows)
    if scaling == "instance":
        raise InputError("data.scaling = 'instance' is for series; the samples are rows.")
    found = moments(rows, np.arange(len(rows)), by_column(spec), scaled_columns(spec))
    mean, deviation = found.mean, found.deviation
    fill = np.nanmedian(numbers, axis=0) if missing == "median" and numbers.size else mean
    edges = None
    if scaling == "quantile":
        count = min(_EDGES, len(rows))
        edges = np.nanquantile(numbers, np.linspace(0, 1, count), axis=0).T.copy() if numbers.size else None
    if scaling == "none":
        mean, deviation = np.zeros_like(mean), np.ones_like(deviation)
    codes = []
    for column in spec.categorical():
        categories = spec.columns[column].categories or ()
        raw = rows[:, column]
        counts = np.bincount(raw[~np.isnan(raw)].astype(np.int64), minlength=len(categories))
        known = counts >= max(min_count, 1)
        codes.append(np.where(known, np.cumsum(known), 0))
    indicators = tuple(np.flatnonzero(absent.any(0)).tolist()) if missing == "indicator" else ()
    return Codec(spec, mean, deviation, fill, indicators, edges, tuple(codes))


def _word_codes(counts: np.ndarray, min_count: int) -> np.ndarray:
    """Return the id of each word of the set: those of enough training texts by falling count, then by word."""
    first = MASKED + 1  # the ids before it have the same meaning in every vocabulary
    codes = np.where(np.arange(len(counts)) < first, np.arange(len(counts)), UNKNOWN)
    words = np.arange(first, len(counts))
    known = words[counts[first:] >= max(min_count, 1)]
    codes[known[np.argsort(-counts[known], kind="stable")]] = np.arange(first, first + len(known))
    return codes


def notes_of(codec: Codec, training: np.ndarray, test: np.ndarray) -> tuple[str, ...]:
    """Return what the codec does to missing and unknown values of a table, and to constant columns, with counts."""
    spec = codec.spec
    found = []
    counts = zip(np.isnan(training).sum(0).tolist(), np.isnan(test).sum(0).tolist(), strict=True)
    for column, (own, others) in zip(spec.columns, counts, strict=True):
        if own or others:
            how = "they become code 0" if column.categories is not None else "data.missing says what they become"
            found.append(f"column {column.name!r}: {own} training and {others} test values are missing; {how}")
    for place in spec.numeric():
        values = training[:, place]
        if len(values) and np.nanmin(values) == np.nanmax(values):
            found.append(f"column {spec.columns[place].name!r} is constant in all training rows")
    for name, count in unseen(codec, test).items():
        found.append(f"column {name!r}: {count} test values are no category of a training row; they become its code 0")
    return tuple(found)


def unseen(codec: Codec, raw: np.ndarray) -> dict[str, int]:
    """Return for each categorical column how many of these rows have a category that training rows lack."""
    found = {}
    for place, column in enumerate(codec.spec.categorical()):
        values = raw[:, column]
        known = ~np.isnan(values)
        codes = codec.codes[place][values[known].astype(np.int64)]
        if count := int((codes == 0).sum()):
            found[codec.spec.columns[column].name] = count
    return found

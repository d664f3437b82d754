"""What real sites say of their training samples before round 1, and the codec that follows for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, some
from .codec import Codec
from .moments import Moments, by_column, merged, moments, nothing, scaled_columns
from .named_sets import encoding_of
from .samples import MOST, Samples
from .spec import DataSpec

MIN_ROWS = 10  # of a site: it sends nothing about fewer samples, nor about a column with fewer values
_MIN_COUNT = 5  # training rows of a site with a category, before the site names it; `data.min_count` sets another
LARGEST = MOST / 2  # of the square root of a column's mean square; what sites agree on is below `MOST` then


class Statistics(NamedTuple):
    """What a site says of its training samples.

    `moments`: of the values of each numeric column (channel; array) that are not missing, then of each target of a
    regression. `known`: for each category of each categorical column, one after the other, whether it has enough
    rows. `missing`: for each numeric column, whether a value is missing, if `data.missing` is `indicator`.
    """

    moments: Moments
    known: np.ndarray
    missing: np.ndarray


class Plan(NamedTuple):
    """What is asked: the lengths of the parts of `Statistics`.

    `columns`: numeric columns whose moments are measured; `targets`; `categories`; `indicators`.
    """

    columns: int
    targets: int
    categories: int
    indicators: int


def plan_of(config: SetsConfig, spec: DataSpec, classes: tuple[str, ...]) -> Plan:
    """Return what sites are asked for. Raises InputError for an option of a config that statistics do not serve."""
    options = encoding_of(config, spec)
    scaling, missing = options["scaling"], options.get("missing")
    if spec.learned:
        raise InputError(
            "data.sites.statistics = 'federated': the words of texts would have to leave the sites; use a spec with "
            "tokenizer = 'bytes', or give the codec (statistics = 'given')."
        )
    for key, value in (("scaling", scaling), ("missing", missing)):
        if value in ("quantile", "median"):
            raise InputError(
                f"data.{key} = {value!r}: it needs the order of all values, which sums of sites do not have; set "
                f"another {key}, or give the codec (data.sites.statistics = 'given')."
            )
    if scaling == "instance" and spec.kind != "series":
        raise InputError(f"data.scaling = 'instance' is for series; the samples are {spec.noun(2)}.")
    measured = spec.kind == "table" or scaling == "standard"  # a table's means fill what is missing, too
    return Plan(
        scaled_columns(spec) if measured else 0,
        len(classes) if spec.task == "regression" else 0,
        sum(len(spec.columns[place].categories or ()) for place in spec.categorical()),
        scaled_columns(spec) if missing == "indicator" else 0,
    )


def statistics_of(config: SetsConfig, spec: DataSpec, classes: tuple[str, ...], train: Samples) -> Statistics:
    """Return what a site says of its training samples, which are as the spec describes them.

    Nothing of fewer than `MIN_ROWS` samples, nor of a column that fewer of them have a value of. Raises InputError as
    `plan_of` does.
    """
    plan = plan_of(config, spec, classes)
    rows = np.arange(len(train.labels))
    if len(rows) < MIN_ROWS:
        return Statistics(
            nothing(plan.columns + plan.targets), np.zeros(plan.categories, bool), np.zeros(plan.indicators, bool)
        )
    parts = []
    if plan.columns:
        found = moments(train.inputs, rows, by_column(spec), plan.columns)
        enough = _samples_with_a_value(spec, train.inputs) >= MIN_ROWS
        parts.append(Moments(*(np.where(enough, one, 0.0) for one in found)))
    if plan.targets:
        parts.append(moments(train.labels, rows, lambda part: part.T, plan.targets))
    both = Moments(*(np.concatenate(one) for one in zip(nothing(0), *parts, strict=True)))
    known = [np.zeros(0, bool)]
    for place in spec.categorical():
        raw = train.inputs[:, place]
        codes = raw[~np.isnan(raw)].astype(np.int64)
        counts = np.bincount(codes, minlength=len(spec.columns[place].categories or ()))
        known.append(counts >= (config.min_count or _MIN_COUNT))
    absent = np.isnan(train.inputs[:, spec.numeric()]).any(0) if plan.indicators else np.zeros(0, bool)
    return Statistics(both, np.concatenate(known), absent)


def _samples_with_a_value(spec: DataSpec, inputs: np.ndarray) -> np.ndarray | int:
    """Return for each column, or channel of series, how many samples have a value of it."""
    if spec.kind == "table":
        return (~np.isnan(inputs[:, spec.numeric()])).sum(0)
    return (~np.isnan(inputs)).any(2).sum(0) if spec.kind == "series" else len(inputs)


def agreed_codec(
    config: SetsConfig, spec: DataSpec, classes: tuple[str, ...], sites: Mapping[str, Statistics]
) -> Codec:
    """Return the codec of the training samples of all sites; `sites`: by name, the order of which changes nothing.

    It is the one that `fit` returns for the pooled samples. Raises InputError, which names it, for a column that no
    site has said anything of.
    """
    plan = plan_of(config, spec, classes)
    found = [sites[name] for name in sorted(sites)]
    total = merged((one.moments for one in found), plan.columns + plan.targets)
    names = [*_names_of(spec)[: plan.columns], *(f"target {name!r}" for name in classes[: plan.targets])]
    if lacking := [name for name, count in zip(names, total.counts.tolist(), strict=True) if not count]:
        raise InputError(
            f"data.sites.statistics = 'federated': {some(lacking, 5)}: no site has {MIN_ROWS} training samples with a "
            "value; drop it, or give the codec (statistics = 'given')."
        )
    known: np.ndarray = np.any([np.zeros(plan.categories, bool), *(one.known for one in found)], axis=0)
    absent: np.ndarray = np.any([np.zeros(plan.indicators, bool), *(one.missing for one in found)], axis=0)
    count = scaled_columns(spec)
    mean, deviation = total.mean[: plan.columns], total.deviation[: plan.columns]
    plain = config.scaling != "standard"
    codes, first = [], 0
    for place in spec.categorical():
        bits = known[first : first + len(spec.columns[place].categories or ())]
        codes.append(np.where(bits, np.cumsum(bits), 0))
        first += len(bits)
    return Codec(
        spec,
        np.zeros(count) if plain or not count else mean,
        (np.ones(count) if plain else deviation) if spec.kind != "tokens" else np.ones(0),
        fill=mean if spec.kind == "table" else np.zeros(0),
        indicators=tuple(np.flatnonzero(absent).tolist()),
        codes=(np.arange(len(spec.words)),) if spec.kind == "tokens" else tuple(codes),
        instance=config.scaling == "instance",
        target_mean=total.mean[plan.columns :],
        target_deviation=total.deviation[plan.columns :],
    )


def _names_of(spec: DataSpec) -> list[str]:
    if spec.kind == "table":
        return [f"column {spec.columns[place].name!r}" for place in spec.numeric()]
    if spec.kind == "array":
        return ["the values"]
    named = [column.name for column in spec.columns] or [str(place) for place in range(scaled_columns(spec))]
    return [f"channel {name}" for name in named]


def values_of_one(spec: DataSpec) -> int:
    """Return the most values that one sample has in one column, or channel."""
    sides = spec.shape[1:] if spec.kind in ("image", "series") else spec.shape if spec.kind == "array" else ()
    return math.prod(sides)


def refuse_odd_statistics(statistics: Statistics, plan: Plan, samples: int, values: int) -> None:
    """Raise ValueError, which names what is wrong, for statistics that no `samples` training samples can have.

    `values`: the most values of one sample in one column.
    """
    count, mean, squares = statistics.moments
    most = np.full(len(count), float(samples * values))
    most[plan.columns :] = samples
    if (count != np.round(count)).any() or (count < 0).any() or (count > most).any():
        raise ValueError("statistics 'count' has values that are not whole, or not 0 to what the site's samples have")
    if (squares < 0).any():
        raise ValueError("statistics 'squares' has values below 0")
    if ((count == 0) & ((mean != 0) | (squares != 0))).any():
        raise ValueError("statistics 'mean' or 'squares' has a number of no values")
    with np.errstate(over="ignore"):
        if not (mean**2 + squares / np.maximum(count, 1) <= LARGEST**2).all():
            raise ValueError(f"statistics 'mean' or 'squares' is of values beyond {LARGEST:g}")

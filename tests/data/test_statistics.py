"""The codec that follows from what sites say of their rows: that of the pooled rows; and what no site can say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fedkd.config.data import DataConfig
from fedkd.data.codec import fit
from fedkd.data.moments import moments
from fedkd.data.samples import Samples
from fedkd.data.spec import Column, DataSpec
from fedkd.data.statistics import (
    MIN_ROWS,
    Statistics,
    agreed_codec,
    plan_of,
    refuse_odd_statistics,
    statistics_of,
    values_of_one,
)
from fedkd.errors import InputError

CLASSES = ("no", "yes")
NUMBER = DataSpec(kind="table", shape=(1,), columns=(Column(name="age"),))
MIXED = DataSpec(
    kind="table",
    shape=(4,),
    columns=(
        Column(name="age"),
        Column(name="sex", categories=("f", "m", "x")),
        Column(name="chol"),
        Column(name="town", categories=("a", "b")),
    ),
)


def config(**keys: Any) -> DataConfig:
    return DataConfig.model_validate({"sites": {"count": 3, "spec": "s.json", "statistics": "federated"}, **keys})


def labelled(rows: np.ndarray) -> Samples:
    return Samples(rows, np.zeros(len(rows), np.int64))


def test_three_nodes_have_the_scaling_of_all_their_values() -> None:
    wave = 2 * np.sin(0.37 * np.arange(12) + 0.1)
    wave[[2, 7]] = np.nan
    none = np.zeros(0, bool)
    sites = {
        f"site-{n}": Statistics(moments(part[:, None], np.arange(len(part)), lambda x: x.T, 1), none, none)
        for n, part in enumerate(np.split(wave, [5, 9]))
    }
    codec = agreed_codec(config(), NUMBER, CLASSES, sites)
    assert codec.mean == codec.fill == pytest.approx([0.49564502], abs=1e-8)
    assert codec.mean != pytest.approx([0.41247817], abs=1e-3)  # the mean of the nodes' means
    assert codec.deviation == pytest.approx([1.27605636], abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sites_agree_on_what_fit_learns_from_pooled_rows(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = data.draw(st.lists(st.integers(3 * MIN_ROWS, 60), min_size=1, max_size=4))
    rows = np.stack(
        [
            100 + rng.normal(size=sum(sizes)) * 30,
            rng.integers(0, 3, sum(sizes)),
            rng.normal(size=sum(sizes)) * 1e-4,
            rng.integers(0, 2, sum(sizes)),
        ],
        axis=1,
    )
    rows[rng.random(rows.shape) < 0.1] = np.nan
    missing, scaling = (
        data.draw(st.sampled_from(["mean", "indicator"])),
        data.draw(st.sampled_from(["standard", "none"])),
    )
    own = config(missing=missing, scaling=scaling, min_count=1)
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    found = {f"site-{n}": statistics_of(own, MIXED, CLASSES, labelled(part)) for n, part in enumerate(parts)}
    codec, pooled = (
        agreed_codec(own, MIXED, CLASSES, found),
        fit(MIXED, rows, np.arange(len(rows)), missing=missing, scaling=scaling),
    )
    for name in ("mean", "deviation", "fill"):
        assert getattr(codec, name) == pytest.approx(getattr(pooled, name), rel=1e-9)
    assert codec.indicators == pooled.indicators
    assert [one.tolist() for one in codec.codes] == [one.tolist() for one in pooled.codes]
    assert codec.form == pooled.form
    again = agreed_codec(own, MIXED, CLASSES, dict(reversed(found.items())))
    assert again.hash == codec.hash  # in any order of the replies


def test_a_site_says_of_categories_only_which_ones_it_has_often_enough() -> None:
    rows = np.full((30, 4), 1.0)
    rows[:, 1] = np.repeat([0.0, 1.0, 2.0], [21, 5, 4])
    rows[0, 2] = np.nan
    found = statistics_of(config(missing="indicator"), MIXED, CLASSES, labelled(rows))
    assert found.known.tolist() == [True, True, False, False, True]
    assert found.missing.tolist() == [False, True]
    assert statistics_of(config(), MIXED, CLASSES, labelled(rows)).missing.tolist() == []
    assert statistics_of(config(min_count=4), MIXED, CLASSES, labelled(rows)).known.tolist()[2]


def test_few_rows_or_few_values_say_nothing() -> None:
    rows = np.arange(4.0 * MIN_ROWS).reshape(MIN_ROWS, 4) % 2
    rows[:, 0] += 5
    found = statistics_of(config(missing="indicator"), MIXED, CLASSES, labelled(rows))
    assert found.moments.counts.tolist() == [MIN_ROWS, MIN_ROWS]
    rows[0, 0] = np.nan
    found = statistics_of(config(missing="indicator"), MIXED, CLASSES, labelled(rows))
    assert [part.tolist()[0] for part in found.moments] == [0, 0, 0]
    assert found.moments.counts[1] == MIN_ROWS
    few = statistics_of(config(missing="indicator"), MIXED, CLASSES, labelled(rows[1:]))
    assert not any(part.any() for part in (*few.moments, few.known, few.missing))


def test_a_channel_that_few_series_have_says_nothing() -> None:
    series = np.ones((MIN_ROWS, 2, 50), np.float32)
    series[1:, 1] = np.nan  # fifty values, but all of one series
    found = statistics_of(config(), DataSpec(kind="series", shape=(2, 50)), CLASSES, labelled(series))
    assert found.moments.counts.tolist() == [500, 0]


@pytest.mark.parametrize(
    ("spec", "keys", "plan"),
    [
        (MIXED, {"missing": "indicator"}, (2, 0, 5, 2)),
        (MIXED, {"scaling": "none"}, (2, 0, 5, 0)),  # means fill what is missing
        (DataSpec(kind="series", shape=(3, 9)), {}, (3, 0, 0, 0)),
        (DataSpec(kind="series", shape=(3, 9)), {"scaling": "instance"}, (0, 0, 0, 0)),
        (DataSpec(kind="image", shape=(3, 8, 8)), {}, (3, 0, 0, 0)),
        (DataSpec(kind="array", shape=(3, 8), task="regression"), {}, (1, 2, 0, 0)),
        (DataSpec(kind="tokens", shape=(8,), words=("a", "b")), {}, (0, 0, 0, 0)),
    ],
)
def test_only_what_the_codec_needs_is_asked(spec: DataSpec, keys: dict[str, Any], plan: tuple[int, ...]) -> None:
    own = config(**keys)
    assert plan_of(own, spec, CLASSES) == plan
    one = {"image": np.uint8, "tokens": np.int64}.get(spec.kind, np.float64)
    labels = np.arange(40.0).reshape(20, 2) if spec.task == "regression" else np.zeros(20, np.int64)
    train = Samples(np.ones((20, *spec.shape), one), labels)
    codec = agreed_codec(own, spec, CLASSES, {"a": statistics_of(own, spec, CLASSES, train)})
    pooled = fit(spec, train.inputs, np.arange(20), scaling=own.scaling, missing=own.missing or "mean")
    assert codec.form == pooled.form
    assert replace(codec, target_mean=pooled.target_mean, target_deviation=pooled.target_deviation).hash == (
        replace(pooled, codes=codec.codes).hash
    )


def test_a_column_that_no_site_has_is_named() -> None:
    rows = np.ones((20, 4))
    rows[:, 2] = np.nan
    found = {"a": statistics_of(config(), MIXED, CLASSES, labelled(rows))}
    with pytest.raises(InputError, match="column 'chol': no site has 10 training samples with a value"):
        agreed_codec(config(), MIXED, CLASSES, found)


@pytest.mark.parametrize(
    ("kind", "shape", "values"),
    [("table", (1,), 1), ("image", (3, 8, 4), 32), ("series", (3, 9), 9), ("array", (2, 5), 10), ("tokens", (8,), 1)],
)
def test_a_sample_has_so_many_values_at_most(kind: Any, shape: tuple[int, ...], values: int) -> None:
    assert values_of_one(DataSpec(kind=kind, shape=shape)) == values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [20.5]}, "not whole"),
        ({"counts": [-1.0]}, "not whole, or not 0 to"),
        ({"counts": [21.0]}, "not 0 to what the site's samples have"),
        ({"counts": [0.0]}, "has a number of no values"),
        ({"squares": [-1e-9]}, "'squares' has values below 0"),
        ({"squares": [1e62]}, "is of values beyond 5e"),
        ({"mean": [1e30]}, "is of values beyond 5e"),
        ({"mean": [1e300]}, "is of values beyond 5e"),
    ],
)
def test_statistics_that_no_samples_have_are_refused(changes: dict[str, list[float]], message: str) -> None:
    plan = plan_of(config(), NUMBER, CLASSES)
    good = statistics_of(config(), NUMBER, CLASSES, labelled(np.arange(20.0)[:, None]))
    refuse_odd_statistics(good, plan, 20, 1)
    bad = good.moments._replace(**{name: np.array(value) for name, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        refuse_odd_statistics(good._replace(moments=bad), plan, 20, 1)


def test_targets_count_samples_and_not_their_values() -> None:
    spec = DataSpec(kind="array", shape=(4,), task="regression")
    train = Samples(np.arange(80.0).reshape(20, 4), np.arange(20.0)[:, None])
    plan = plan_of(config(), spec, ("y",))
    good = statistics_of(config(), spec, ("y",), train)
    assert good.moments.counts.tolist() == [80, 20]
    refuse_odd_statistics(good, plan, 20, 4)
    with pytest.raises(ValueError, match="not 0 to what the site's samples have"):
        refuse_odd_statistics(good._replace(moments=good.moments._replace(counts=np.array([80.0, 21.0]))), plan, 20, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sites": {"count": 2, "shape": [1, 8, 8], "classes": ["a", "b"], "statistics": "federated"}}, "needs spec"),
        (
            {"sites": {"count": 2, "spec": "s.json", "statistics": "federated"}, "mean": [0.5]},
            "mean is what sites.stat",
        ),
        ({"sites": {"count": 2, "spec": "s.json", "statistics": "pooled"}}, "'given' or 'federated'"),
        ({"sites": {"count": 2, "spec": "s.json", "statistics": "given"}, "min_count": 5}, "min_count is in the file"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate(data)

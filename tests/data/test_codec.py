"""What training samples say about scaling, categories and words, and that nothing else says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer

from fedkd.config.data import DataConfig
from fedkd.data import codec as codecs
from fedkd.data.codec import Codec, fit, unseen
from fedkd.data.encoder import Encoder
from fedkd.data.federation import federate
from fedkd.data.spec import Column, DataSpec
from fedkd.errors import InputError

CPU = torch.device("cpu")


def waves(shape: tuple[int, ...], f: float, p: float, a: float = 1.0) -> np.ndarray:
    """Return a sin(f i + p), i = 0, 1, ... in C order."""
    return a * np.sin(f * np.arange(np.prod(shape)) + p).reshape(shape)


def table(*categories: int | None) -> DataSpec:
    """Return the spec of a table; for each column the number of its categories, or None for numbers."""
    columns = [
        Column(name=f"c{i}", categories=None if n is None else tuple(f"v{k}" for k in range(n)))
        for i, n in enumerate(categories)
    ]
    return DataSpec(kind="table", shape=(len(columns),), columns=tuple(columns))


def encode(codec: Codec, raw: np.ndarray) -> np.ndarray:
    return Encoder(codec, CPU)(torch.from_numpy(raw)).numpy()


COLUMN = waves((12,), 0.37, 0.1, 2)
COLUMN[[2, 7]] = np.nan


def test_scaling_pools_the_nodes() -> None:
    codec = fit(table(None), COLUMN[:, None], np.arange(12))
    assert codec.mean == pytest.approx([0.49564502], abs=1e-8)
    assert codec.deviation == pytest.approx([1.27605636], abs=1e-8)
    slip = np.mean([np.nanmean(part) for part in (COLUMN[0:5], COLUMN[5:9], COLUMN[9:12])])
    assert slip == pytest.approx(0.41247817)  # the mean of the nodes' means, which is another number
    assert encode(codec, COLUMN[:, None])[2] == 0  # a missing number is the mean
    assert encode(fit(table(None), COLUMN[:, None], np.arange(12), missing="median"), COLUMN[:, None])[2] == (
        pytest.approx((np.nanmedian(COLUMN) - 0.49564502) / 1.27605636, abs=1e-6)
    )


def test_quantiles_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "_EDGES", 5)
    codec = fit(table(None), COLUMN[:, None], np.arange(12), scaling="quantile")
    assert codec.edges is not None
    expected = [-1.71295595, -0.38588749, 0.55271970, 1.75955529, 1.99991529]
    assert codec.edges[0] == pytest.approx(expected, abs=1e-8)
    top = np.array([[np.nanmax(COLUMN)], [7.0]])
    assert encode(codec, top) == pytest.approx(5.19933758, abs=1e-5)
    known = COLUMN[~np.isnan(COLUMN)][:, None]
    theirs = QuantileTransformer(n_quantiles=5, output_distribution="normal").fit(COLUMN[:, None])
    assert encode(codec, known) == pytest.approx(theirs.transform(known), abs=1e-5)


def test_series_are_scaled_by_their_valid_steps() -> None:
    series = waves((2, 3, 5), 0.37, 0.2, 2).astype(np.float32)
    padded = series.copy()
    padded[1, :, 3:] = np.nan
    codec = fit(DataSpec(kind="series", shape=(3, 5)), padded, np.arange(2))
    assert codec.mean == pytest.approx([0.76017251, 1.08515317, -1.35828777], abs=1e-6)
    assert codec.deviation == pytest.approx([1.01873465, 0.95820483, 0.61402109], abs=1e-6)
    found = encode(codec, padded)
    assert found.shape == (2, 4, 5)
    assert found[1, 0] == pytest.approx([-1.74405639, -1.06514149, -0.34305840, 0, 0], abs=1e-5)
    assert found[:, 3].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    slip = np.nan_to_num(padded).mean((0, 2))
    assert slip == pytest.approx([0.60813801, 0.86812253, -1.08663022], abs=1e-6)
    own = encode(fit(DataSpec(kind="series", shape=(3, 5)), padded, np.arange(2), scaling="instance"), padded)
    assert own[1, :3, :3].mean(1) == pytest.approx([0, 0, 0], abs=1e-6)
    assert own[1, :3, :3].std(1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_categories_are_those_of_scikit_learn_plus_one() -> None:
    raw = np.array([[2.0], [0.0], [np.nan], [2.0]])
    codec = fit(table(4), raw, np.arange(4))
    theirs = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1).fit(raw)
    tests = np.array([[0.0], [1.0], [2.0], [3.0], [np.nan]])
    assert encode(codec, tests).ravel().tolist() == (theirs.transform(tests) + 1).ravel().tolist() == [1, 0, 2, 0, 0]
    assert codec.form.cards == (3,)
    assert unseen(codec, tests) == {"c0": 2}
    rare = fit(table(4), raw, np.arange(4), min_count=2)
    assert encode(rare, tests).ravel().tolist() == [0, 0, 1, 0, 0]


def test_indicators_stand_between_numbers_and_codes() -> None:
    raw = np.array([[1.0, np.nan, 0.0], [3.0, 2.0, 1.0], [5.0, 4.0, 0.0]])
    codec = fit(table(None, None, 2), raw, np.arange(3), missing="indicator")
    assert codec.form.shape == (4,)
    assert encode(codec, raw)[:, 2].tolist() == [1, 0, 0]
    assert encode(codec, np.array([[np.nan, 2.0, 0.0]]))[0].tolist() == [0, pytest.approx(-1), 0, 1]


@pytest.mark.parametrize(
    ("spec", "raw", "options", "message"),
    [
        (table(None), [[1.0], [np.nan]], {"missing": "refuse"}, "1 numbers are missing, 1 of them in column 'c0'"),
        (table(None), [[np.nan], [np.nan]], {}, "column 'c0' has no value in any training row"),
        (table(None), [[1.0], [2.0]], {"scaling": "instance"}, "'instance' is for series"),
        (DataSpec(kind="array", shape=(1,)), [[1.0], [2.0]], {"scaling": "quantile"}, "'quantile' is for tables"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(spec: DataSpec, raw: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(spec, np.array(raw), np.arange(len(raw)), **options)


def test_an_image_in_another_range_than_its_mean_is_refused() -> None:
    spec = DataSpec(kind="image", shape=(1, 2, 2), largest=65535.0)
    images = np.full((4, 1, 2, 2), 200, np.uint16)  # of 0..255, but in 16 bits
    with pytest.raises(InputError, match=r"data.mean = .*deviations away; they are in another range"):
        fit(spec, images, np.arange(4), mean=[0.8], deviation=[0.03])
    codec = fit(spec, np.arange(16, dtype=np.uint16).reshape(4, 1, 2, 2) * 4000, np.arange(4))
    assert codec.mean == pytest.approx([7.5 * 4000 / 65535])


def write(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["a,b,site,part,y", *rows]) + "\n")
    return path


def rows_of(count: int, part: str, far: float = 0.0) -> list[str]:
    return [f"{i % 7 + far},{'xyz'[i % 3]},s{i % 2},{part},{i % 2}" for i in range(count)]


def config_of(path: Path, **more: Any) -> DataConfig:
    base = {"label": "y", "node": "site", "split": "part", "partition": {"scheme": "natural"}}
    return DataConfig(file=str(path), **{**base, **more})


def test_test_rows_teach_the_codec_nothing(tmp_path: Path) -> None:
    train, test = rows_of(40, "train"), rows_of(10, "test")
    plain = federate(config_of(write(tmp_path / "a.csv", train + test)), 0)
    odd = federate(config_of(write(tmp_path / "b.csv", train + rows_of(10, "test", far=1e6))), 0)
    assert plain.codec.hash == odd.codec.hash
    assert odd.test.inputs[:, 0].max() > 1e5


def test_a_far_value_in_the_public_set_moves_nothing(tmp_path: Path) -> None:
    train = rows_of(40, "train")
    more = {"partition": {"scheme": "iid", "clients": 2}, "public": {"size": 9}, "node": None, "drop": ["site"]}
    first = federate(config_of(write(tmp_path / "a.csv", [*train, *rows_of(4, "test")]), **more), 0)
    for number in range(len(train)):  # the public set is drawn by the labels alone, so that its rows stay the same
        changed = [*train]
        changed[number] = ",".join(["1000000.0", *train[number].split(",")[1:]])
        again = federate(config_of(write(tmp_path / "b.csv", [*changed, *rows_of(4, "test")]), **more), 0)
        assert again.public is not None
        if again.public.inputs[:, 0].max() == 1e6:
            assert again.codec.mean.tolist() == first.codec.mean.tolist()
            return
    raise AssertionError("no row is public")


FLOATS = st.floats(-1e6, 1e6, allow_nan=False) | st.just(float("nan"))


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    rows = draw(st.integers(2, 12))
    numbers = draw(st.lists(FLOATS, min_size=rows, max_size=rows))
    codes = draw(st.lists(st.integers(0, 3).map(float) | st.just(float("nan")), min_size=rows, max_size=rows))
    found = np.array([numbers, codes]).T
    found[0] = [draw(st.floats(-10, 10)), 0]
    return found


@settings(deadline=None, max_examples=60)
@given(tables(), st.randoms())
def test_the_order_of_rows_changes_no_codec(raw: np.ndarray, random: Any) -> None:
    order = np.array(random.sample(range(len(raw)), len(raw)))
    one, two = (fit(table(None, 4), raw, rows) for rows in (np.arange(len(raw)), order))
    assert two.mean == pytest.approx(one.mean, rel=1e-9, abs=1e-9)
    assert two.deviation == pytest.approx(one.deviation, rel=1e-6, abs=1e-6)
    assert [codes.tolist() for codes in one.codes] == [codes.tolist() for codes in two.codes]


@settings(deadline=None, max_examples=60)
@given(tables())
def test_decoding_gives_back_known_categories_and_numbers(raw: np.ndarray) -> None:
    codec = fit(table(None, 4), raw, np.arange(len(raw)))
    encoder = Encoder(codec, CPU)
    back = encoder.decode(encoder(torch.from_numpy(raw)))
    known = ~np.isnan(raw[:, 0])
    assert np.abs(back[known, 0] - raw[known, 0]).max() <= 1e-5 * max(codec.deviation[0], abs(codec.mean[0]), 1)
    assert np.array_equal(back[:, 1], raw[:, 1], equal_nan=True)
    assert np.isfinite(encoder(torch.from_numpy(raw)).numpy()).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), st.none() | st.lists(st.text(), max_size=3)), max_size=4))
def test_a_spec_survives_json(columns: list[tuple[str, list[str] | None]]) -> None:
    made = tuple(Column(name=name, categories=None if some is None else tuple(some)) for name, some in columns)
    spec = DataSpec(kind="table", shape=(len(made),), columns=made)
    back = DataSpec.model_validate_json(json.dumps(json.loads(spec.canonical())))
    assert back == spec
    assert back.canonical() == spec.canonical()


def test_splitting_a_node_changes_no_statistic(tmp_path: Path) -> None:
    rows = rows_of(40, "train") + rows_of(10, "test")
    whole = federate(config_of(write(tmp_path / "a.csv", rows)), 0)
    halves = [line.replace(",s1,", f",s1{'ab'[i % 4 == 1]},") for i, line in enumerate(rows)]
    split = federate(config_of(write(tmp_path / "b.csv", halves)), 0)
    assert split.clients == whole.clients + 1
    assert split.codec.mean.tolist() == whole.codec.mean.tolist()
    assert split.codec.deviation.tolist() == whole.codec.deviation.tolist()


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_a_deviation_of_one_pixel_value_is_measured_as_any_other(kind: str) -> None:
    largest = float(np.iinfo(kind).max)
    images = np.array([9, 11], kind).reshape(2, 1, 1, 1)  # deviation 1, of 0 to the largest
    codec = fit(DataSpec(kind="image", shape=(1, 1, 1), largest=largest), images, np.arange(2))
    np.testing.assert_allclose([codec.mean[0], codec.deviation[0]], [10 / largest, 1 / largest])


def test_numbers_scaled_by_quantiles_are_shown_as_they_were() -> None:
    rows = np.sort(np.random.default_rng(0).exponential(size=(400, 2)), axis=0)
    spec = DataSpec(kind="table", shape=(2,), columns=(Column(name="a"), Column(name="b")))
    encoder = Encoder(fit(spec, rows, np.arange(400), scaling="quantile"), torch.device("cpu"))
    np.testing.assert_allclose(encoder.decode(encoder(torch.from_numpy(rows)))[5:-5], rows[5:-5], rtol=1e-3)

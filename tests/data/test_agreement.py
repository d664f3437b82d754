"""What sites and the server encode by, as a file: equal both ways, and refused if its parts do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fedkd.config.data import DataConfig
from fedkd.data.agreement import Agreement, agreement_of, read_agreement, spec_of, to_json
from fedkd.data.alignment import in_kinds_of
from fedkd.data.codec import fit
from fedkd.data.samples import Dataset, Samples
from fedkd.data.spec import Column, DataSpec
from fedkd.errors import InputError

CLASSES = ("no", "yes")


@st.composite
def agreements(draw: st.DrawFn) -> Agreement:
    """Return what some samples of some kind give."""
    kind = draw(st.sampled_from(["table", "series", "tokens", "image", "array"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(2, 9))
    far = 10.0 ** draw(st.integers(-9, 9))
    if kind == "table":
        cards = draw(st.lists(st.none() | st.integers(1, 4), min_size=1, max_size=5))
        raw = rng.normal(size=(count, len(cards))) * far
        for place, card in enumerate(cards):
            raw[:, place] = raw[:, place] if card is None else rng.integers(0, card, count)
        raw[1:][rng.random(raw[1:].shape) < 0.3] = np.nan
        names = draw(st.lists(st.text("aé ↑\"'", min_size=1), min_size=len(cards), max_size=len(cards), unique=True))
        columns = tuple(
            Column(
                name=f"c{name}", unit="mg/dl", categories=None if card is None else tuple(f"v{k}" for k in range(card))
            )
            for name, card in zip(names, cards, strict=True)
        )
        spec = DataSpec(kind="table", shape=(len(cards),), columns=columns)
        missing = draw(st.sampled_from(["mean", "median", "indicator"]))
        scaling = draw(st.sampled_from(["standard", "quantile", "none"]))
        return Agreement(fit(spec, raw, np.arange(count), scaling=scaling, missing=missing), CLASSES)
    shapes = {"series": (2, 5), "tokens": (6,), "image": (3, 4, 4), "array": (2, 3, 2)}
    words = tuple(f"w{i}" for i in range(9)) if kind == "tokens" else ()
    largest = draw(st.sampled_from([None, 255.0])) if kind == "image" else None
    spec = DataSpec(kind=kind, shape=shapes[kind], words=words, learned=bool(words), largest=largest)
    raw = rng.integers(0, 9, (count, 6)) if words else (rng.normal(size=(count, *spec.shape)) * far).astype(np.float32)
    scaling = draw(st.sampled_from(["standard", "instance"])) if kind == "series" else "standard"
    return Agreement(fit(spec, raw, np.arange(count), scaling=scaling), CLASSES)


@settings(max_examples=60, deadline=None)
@given(agreements())
def test_a_codec_has_the_same_hash_both_ways(agreement: Agreement) -> None:
    again = agreement_of(to_json(agreement))
    assert again.codec.hash == agreement.codec.hash
    assert (again.codec.spec, again.classes) == (agreement.codec.spec, agreement.classes)
    assert again.codec.form == agreement.codec.form
    assert to_json(again) == to_json(agreement)


SPEC = DataSpec(kind="table", shape=(2,), columns=(Column(name="age"), Column(name="sex", categories=("f", "m"))))
TABLE: dict[str, Any] = json.loads(
    to_json(Agreement(fit(SPEC, np.array([[1.0, 0.0], [3.0, 1.0]]), np.arange(2)), CLASSES))
)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codec.mean", [1.0, 2.0], "mean and deviation have not a number for each of 1"),
        ("codec.mean", [float("nan")], "codec.mean.0"),
        ("codec.deviation", [0.0], "a deviation is not above 0"),
        ("codec.fill", [], "fill has not a number for each"),
        ("codec.indicators", [1], "indicators are not positions"),
        ("codec.edges", [[2.0, 1.0]], "edges are not rising"),
        ("codec.codes", [[1]], "with a number for each category"),
        ("codec.codes", [[1, 3]], "a code is not 0 to the number"),
        ("codec.instance", True, "instance is for series"),
        ("codec.more", 1, "codec.more"),
        ("classes", ["a"], "fewer than two classes"),
        ("classes", ["a", "a"], "a class is there twice"),
        ("classes", ["a", "\n"], "the name of a class is empty, not printable"),
        ("spec.shape", [3], "it has 2 columns, and its shape says 3"),
        ("spec.shape", [2, 2], "no shape of 2 numbers"),
        ("spec.kind", "video", "spec.kind"),
    ],
)
def test_what_no_codec_can_be_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    table = json.loads(json.dumps(TABLE))
    *path, last = key.split(".")
    inner = table
    for part in path:
        inner = inner[part]
    inner[last] = value
    (tmp_path / "spec.json").write_text(json.dumps(table))
    config = DataConfig.model_validate({"sites": {"count": 2, "spec": str(tmp_path / "spec.json")}})
    with pytest.raises(InputError, match=rf"data.sites.spec = .*it is not what `fedkd describe` writes: .*{message}"):
        read_agreement(config)


def test_a_file_that_is_not_there_is_named() -> None:
    config = DataConfig.model_validate({"sites": {"count": 2, "spec": "nowhere.json"}})
    with pytest.raises(InputError, match=r"data.sites.spec = 'nowhere.json': there is no such file"):
        read_agreement(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": []}, "no shape of 0 numbers"),
        ({"shape": [10**9]}, "not 1 to 10000000"),
        ({"shape": [2.0]}, "shape.0"),
        ({"largest": 1e300}, "largest value"),
        ({"words": ["a"]}, "of kind table have no words"),
        ({"columns": [{"name": "a\u202e"}, {"name": "b"}]}, "not printable"),
        ({"columns": [{"name": "a"}, {"name": "a"}]}, "a column is there twice"),
        ({"columns": [{"name": "a", "unit": "x" * 300}, {"name": "b"}]}, "a unit is not printable"),
        ({"kind": "series", "shape": [2, 9]}, "a channel of a series has categories"),
        ({"kind": "array"}, "of kind array have no columns"),
        ({"path": "/x"}, "path: Extra inputs"),
    ],
)
def test_a_strangers_description_is_read_strictly(changes: dict[str, Any], message: str) -> None:
    table = {**SPEC.model_dump(mode="json"), **changes}
    with pytest.raises(ValueError, match=message):
        spec_of(json.dumps(table))
    with pytest.raises(ValueError, match="nested too deeply"):
        spec_of("[" * 10**5)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"count": 2}, "set either spec"),
        ({"count": 2, "spec": "a.json", "shape": [1, 8, 8], "classes": ["a", "b"]}, "set either spec"),
        ({"count": 2, "spec": "a.json", "classes": ["a", "b"]}, "set either spec"),
        ({"count": 2, "shape": [1, 8, 8]}, "set either spec"),
    ],
)
def test_the_form_of_samples_is_said_once(sites: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig.model_validate({"sites": sites})
    for key, value in {"missing": "mean", "scaling": "quantile", "min_count": 2, "classes": ["a", "b"]}.items():
        with pytest.raises(ValueError, match=f"{key} is in the file sites.spec already"):
            DataConfig.model_validate({"sites": {"count": 2, "spec": "a.json"}, key: value})


def test_numbers_are_categories_where_all_categories_are_numbers() -> None:
    agreed = DataSpec(
        kind="table",
        shape=(3,),
        columns=(
            Column(name="a", categories=("1", "2.5")),
            Column(name="b", categories=("x",)),
            Column(name="c", categories=("y",)),
        ),
    )
    own = DataSpec(kind="table", shape=(3,), columns=tuple(Column(name=name) for name in "abc"))
    rows = np.array([[2.5, 1.0, np.nan], [7.0, 1.0, np.nan], [np.nan, 1.0, np.nan]])
    samples = Samples(rows, np.zeros(3, np.int64))
    found = in_kinds_of(Dataset(samples, samples, CLASSES, spec=own), agreed)
    assert [column.categories for column in found.about.columns] == [("2.5", "7"), None, ()]
    assert found.train.inputs[:, 0].tolist()[:2] == [0, 1]
    assert np.isnan(found.train.inputs[2, 0])

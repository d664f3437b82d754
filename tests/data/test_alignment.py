"""Several sets in one description: columns, categories and words go by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fedkd.config.data import DataConfig
from fedkd.data.alignment import common_spec, in_spec
from fedkd.data.federation import federate
from fedkd.data.samples import Dataset, Samples
from fedkd.data.spec import Column, DataSpec
from fedkd.errors import InputError

LABELS = np.array([0, 1])


def table(columns: dict[str, tuple[str, ...] | None], rows: list[list[float]]) -> Dataset:
    made = tuple(Column(name=name, categories=categories) for name, categories in columns.items())
    samples = Samples(np.array(rows), LABELS)
    return Dataset(samples, samples, ("a", "b"), spec=DataSpec(kind="table", shape=(len(made),), columns=made))


def of_kind(kind: Any, inputs: np.ndarray, **more: Any) -> Dataset:
    samples = Samples(inputs, LABELS)
    return Dataset(samples, samples, ("a", "b"), spec=DataSpec(kind=kind, shape=inputs.shape[1:], **more))


ONE = table({"age": None, "sex": ("f", "m")}, [[30, 0], [40, 1]])
TWO = table({"sex": ("m", "x"), "age": None}, [[0, 50], [1, np.nan]])


def test_categories_are_those_of_all_sets() -> None:
    spec = common_spec([ONE, TWO], ["one", "two"])
    assert [(one.name, one.categories) for one in spec.columns] == [("age", None), ("sex", ("f", "m", "x"))]
    assert in_spec(ONE, spec).train.inputs.tolist() == [[30, 0], [40, 1]]
    assert np.array_equal(in_spec(TWO, spec).train.inputs, [[50, 1], [np.nan, 2]], equal_nan=True)
    assert np.array_equal(in_spec(TWO, ONE.about).train.inputs, [[50, 1], [np.nan, np.nan]], equal_nan=True)


def test_words_and_lengths() -> None:
    special = ("<pad>", "<unknown>", "<start>", "<mask>")
    one = of_kind("tokens", np.array([[4, 5], [5, 0]]), words=(*special, "cat", "dog"), learned=True)
    two = of_kind("tokens", np.array([[4, 5, 4], [5, 0, 0]]), words=(*special, "bird", "dog"), learned=True)
    spec = common_spec([one, two], ["one", "two"])
    assert spec.words == (*special, "bird", "cat", "dog")
    assert in_spec(one, spec).train.inputs.tolist() == [[5, 6, 0], [6, 0, 0]]
    assert in_spec(two, spec).train.inputs.tolist() == [[4, 6, 4], [6, 0, 0]]
    assert in_spec(two, one.about).train.inputs.tolist() == [[1, 5, 1], [5, 0, 0]]
    short, long = (of_kind("series", np.ones((2, 3, steps), np.float32)) for steps in (4, 6))
    padded = in_spec(short, common_spec([short, long], ["a", "b"])).train.inputs
    assert padded.shape == (2, 3, 6)
    assert np.isnan(padded[:, :, 4:]).all()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table({"age": None}, [[1], [2]]), "two does not fit one: it has no column 'sex'"),
        (table({"age": None, "sex": None}, [[1, 2]] * 2), "its column 'sex' is numeric, here it is categorical"),
        (
            table({"age": None, "sex": ("f",), "x": None}, [[1, 0, 1]] * 2),
            "it has a column 'x', which is not known here",
        ),
        (of_kind("array", np.ones((2, 2))), "its samples are of kind array, here they are of kind table"),
    ],
)
def test_other_columns_are_refused_by_name(other: Dataset, message: str) -> None:
    with pytest.raises(InputError, match=message):
        common_spec([ONE, other], ["one", "two"])


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(5)), st.permutations(range(3)))
def test_the_order_of_columns_and_categories_changes_nothing(order: list[int], names: list[int]) -> None:
    rng = np.random.default_rng(0)
    columns = {f"c{i}": ("x", "y", "z") if i % 2 else None for i in range(5)}
    rows = np.where(np.arange(5) % 2, rng.integers(0, 3, (2, 5)), rng.normal(size=(2, 5)))
    rows[0, 1] = np.nan
    plain = table(columns, rows.tolist())
    back = np.argsort(names)
    recoded = np.where((np.arange(5) % 2 == 1) & ~np.isnan(rows), back[np.nan_to_num(rows).astype(int) % 3], rows)
    turned = {name: None if one is None else tuple(one[i] for i in names) for name, one in columns.items()}
    mixed = table({f"c{i}": turned[f"c{i}"] for i in order}, recoded[:, order].tolist())
    assert np.array_equal(in_spec(mixed, plain.about).train.inputs, plain.train.inputs, equal_nan=True)


def write(path: Path, header: str, lines: list[str]) -> str:
    path.write_text("\n".join([header, *lines]))
    return f"file:{path}"


def test_files_as_domains_and_as_public_set(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", "age,sex,y", [f"{i},{'fm'[i % 2]},{'pq'[i % 2]}" for i in range(40)])
    two = write(tmp_path / "b.csv", "sex,y,age", [f"{'mx'[i % 2]},{'pq'[i % 2]},{i}" for i in range(40)])
    config: dict[str, Any] = {"label": "y", "partition": {"scheme": "domains"}}
    data = federate(DataConfig(names=[one, two], **config), 0)
    assert data.spec.columns[1].categories == ("f", "m", "x")
    assert sorted(set(data.train_of(0).inputs[:, 1])) == [0, 1]
    assert sorted(set(data.train_of(1).inputs[:, 1])) == [1, 2]
    iid = {"label": "y", "partition": {"scheme": "iid", "clients": 2}}
    public = {"public": {"name": two, "size": 10}}
    data = federate(DataConfig(file=str(tmp_path / "a.csv"), **iid, **public), 0)
    assert data.public is not None
    assert data.spec.columns[1].categories == ("f", "m")
    assert set(data.public.inputs[:, 1][~np.isnan(data.public.inputs[:, 1])]) == {1.0}  # x is no category of the nodes
    far = write(tmp_path / "b.csv", "sex,y,age", [f"{'mx'[i % 2]},{'pq'[i % 2]},{i * 1e6}" for i in range(40)])
    again = federate(DataConfig(file=str(tmp_path / "a.csv"), **iid, public={"name": far, "size": 10}), 0)
    assert again.codec.hash == data.codec.hash
    write(tmp_path / "c.csv", "sex,y,height", ["m,p,1"] * 20 + ["x,q,2"] * 20)
    public["public"]["name"] = f"file:{tmp_path / 'c.csv'}"
    with pytest.raises(
        InputError, match="public.name = .*c.csv': it does not fit the nodes' rows: it has no column 'age'"
    ):
        federate(DataConfig(file=str(tmp_path / "a.csv"), **iid, **public), 0)


def test_nodes_of_one_class_and_without_test_rows_are_named(tmp_path: Path) -> None:
    lines = [f"{i},s{i % 2},{i % 2 if i > 20 else i // 2 % 2}" for i in range(60)]
    lines += ["1,tiny,0", "2,tiny,1", "3,same,1", "4,same,1", "5,same,1", "6,same,1"]
    name = write(tmp_path / "a.csv", "age,site,y", lines)
    config = {"file": name.removeprefix("file:"), "label": "y", "node": "site", "partition": {"scheme": "natural"}}
    data = federate(DataConfig(**config), 0)  # type: ignore[arg-type]
    assert "1 nodes have training samples of one class only: same" in data.notes
    assert "1 nodes have no test samples: tiny" in data.notes

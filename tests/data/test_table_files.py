"""Files of rows: what their columns are, which rows are for tests, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import SETS

from fedkd.config import SetsConfig
from fedkd.config.data import DataConfig
from fedkd.data.data_files import from_file
from fedkd.data.federation import federate
from fedkd.data.samples import Dataset, checked
from fedkd.data.table_files import from_frame
from fedkd.errors import InputError

N = 60
FRAME = pd.DataFrame(
    {
        "age": np.linspace(20, 80, N),
        "visits": [i % 5 for i in range(N)],
        "sex": ["male", "female", None] * (N // 3),
        "smokes": [i % 4 == 0 for i in range(N)],
        "hospital": [f"h{i % 3}" for i in range(N)],
        "ill": [["yes", "no"][i % 2] for i in range(N)],
    }
)
OPTIONS: dict[str, Any] = {"label": "ill", "node": "hospital"}


def read(frame: pd.DataFrame = FRAME, **options: Any) -> Dataset:
    given = {key: value for key, value in {**OPTIONS, **options}.items() if value is not None}
    return checked(from_frame(frame, SetsConfig(**given), "f.csv"), "f.csv", "data.file")


def test_columns_are_numbers_or_categories_by_their_values() -> None:
    data = read()
    columns = data.about.columns
    assert [(one.name, one.categories) for one in columns] == [
        ("age", None),
        ("visits", None),
        ("sex", ("female", "male")),
        ("smokes", ("false", "true")),
    ]
    assert data.classes == ("no", "yes")
    assert len(data.test.labels) == 12
    assert data.nodes is not None
    assert sorted(set(data.nodes[0])) == ["h0", "h1", "h2"]
    assert np.isnan(np.concatenate([data.train.inputs[:, 2], data.test.inputs[:, 2]])).sum() == 20
    names = "labels are names; the classes in their order are 'no', 'yes'"
    assert data.notes == (
        names,
        "column 'visits' has only 5 whole numbers and is taken as numeric; data.columns.visits = 'categorical' takes "
        "them as categories",
    )
    chosen = read(columns={"visits": "categorical"}, units={"age": "years"}, drop=["sex", "smokes"])
    assert chosen.about.columns[1].categories == ("0", "1", "2", "3", "4")
    assert chosen.about.columns[0].unit == "years"
    assert chosen.notes == (names,)


def test_numbers_as_categories_keep_their_digits() -> None:
    frame = FRAME.assign(code=[1234567 + i % 2 for i in range(N)], part=[0.125 * (i % 2) for i in range(N)])
    found = read(frame, columns={"code": "categorical", "part": "categorical"}).about.columns
    assert found[-2].categories == ("1234567", "1234568")
    assert found[-1].categories == ("0", "0.125")


def test_formats_agree(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "f.csv", index=False, encoding="utf-8-sig")
    FRAME.to_csv(tmp_path / "f.tsv", index=False, sep="\t")
    FRAME.to_parquet(tmp_path / "f.parquet")
    (tmp_path / "parts").mkdir()
    FRAME.iloc[:30].to_parquet(tmp_path / "parts" / "a.parquet")
    FRAME.iloc[30:].to_parquet(tmp_path / "parts" / "b.parquet")
    first = read()
    for name in ("f.csv", "f.tsv", "f.parquet", "parts"):
        data = from_file(tmp_path / name, SetsConfig(**OPTIONS))
        assert np.array_equal(data.train.inputs, first.train.inputs, equal_nan=True), name
        assert np.array_equal(data.test.labels, first.test.labels)
        assert data.about == first.about


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9] * 30, ("9", "10")),  # by size
        ([True, False] * 30, ("false", "true")),
        ([1.0, 2.0] * 30, ("1", "2")),
        (pd.Categorical(["b", "a"] * 30), ("a", "b")),
    ],
)
def test_labels_of_any_type(labels: Any, classes: tuple[str, ...]) -> None:
    data = read(FRAME.assign(ill=labels))
    assert data.classes == classes
    assert set(data.train.labels) == {0, 1}
    assert read(FRAME, classes=["yes", "no", "unknown"]).classes == ("yes", "no", "unknown")


def test_what_is_odd_is_named() -> None:
    frame = FRAME.assign(stage=[2 * (i % 2) + i // 40 for i in range(N)], number=range(N), same=1.5)
    notes = read(frame).notes
    assert any("column 'stage' says the label: each of its values has one class" in note for note in notes)
    assert any("column 'number' numbers the rows" in note for note in notes)
    unlabelled = FRAME.assign(ill=["yes", "no", None] * 20)
    data = read(unlabelled, drop_unlabelled=True)
    assert "20 rows without a label are left out" in data.notes
    assert len(data.train.labels) + len(data.test.labels) == 40


def test_the_test_part_can_be_a_column() -> None:
    data = read(FRAME.assign(part=["Train"] * 50 + ["test"] * 10), split="part")
    assert len(data.test.labels) == 10
    assert data.test.inputs[0, 0] == FRAME["age"][50]


def time_of(frame: pd.DataFrame, **options: Any) -> tuple[list, list]:
    data = read(frame, time="when", drop=["visits", "sex", "smokes"], **options)
    back = dict(zip(FRAME["age"], range(N), strict=True))
    return tuple([back[age] for age in part.inputs[:, 0]] for part in (data.train, data.test))  # type: ignore[return-value]


def test_the_last_rows_of_each_node_are_for_tests() -> None:
    frame = FRAME.assign(when=[N - i for i in range(N)])  # the first row is the latest
    train, test = time_of(frame)
    assert sorted(test) == list(range(12))  # three nodes, a fifth of 20 each
    assert sorted(train + test) == list(range(N))
    ties = FRAME.assign(when=[i // 15 for i in range(N)])
    train, test = time_of(ties, test=0.3)  # 6 of 20; the last five have the largest time, others are ties of training
    assert sorted(test) == list(range(45, 60))
    train, test = time_of(frame, gap=3.0, node=None)
    assert sorted(test) == list(
        range(9)
    )  # the border is at row 12, at time 48; of 49 to 60, 49, 50 and 51 are too near
    assert sorted(train) == list(range(12, N))
    days = FRAME.assign(when=[f"2001-01-{1 + i // 2:02d} {12 * (i % 2):02d}:00" for i in range(N)])
    train, test = time_of(days, node=None, gap=1.0)
    assert sorted(test) == list(range(50, 60))  # two rows are a day
    with pytest.raises(InputError, match="leaves no test rows"):
        time_of(FRAME.assign(when=1))


def changed(name: str, values: Any) -> pd.DataFrame:
    return FRAME.assign(**{name: values})


def at(name: str, row: int, value: Any) -> pd.DataFrame:
    column = FRAME[name].astype(object).copy() if isinstance(value, str) else FRAME[name].copy()
    column[row] = value
    return FRAME.assign(**{name: column})


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (FRAME, {"label": None}, "data.label is missing: it names the column of f.csv .*; there are age, visits, sex"),
        (FRAME, {"label": "il"}, "data.label = 'il': f.csv has no such column; did you mean 'ill'"),
        (FRAME, {"node": "site"}, "data.node = 'site': f.csv has no such column"),
        (FRAME, {"drop": ["sx"]}, r"data.drop\[0\] = 'sx': f.csv has no such column; did you mean 'sex'"),
        (FRAME, {"columns": {"Age": "numeric"}}, "data.columns.Age = 'Age': f.csv has no such column"),
        (FRAME, {"node": "ill"}, "data.node and data.label both name the column 'ill'"),
        (FRAME, {"drop": ["ill"]}, "data.drop and data.label both name the column 'ill'"),
        (FRAME, {"kind": "series"}, "data.kind = 'series': the columns of f.csv are a table"),
        (FRAME.rename(columns={"age;sex": "x"})[["age"]].rename(columns={"age": "age;ill"}), {}, "not separated by co"),
        (FRAME.iloc[:0], {}, "f.csv has no rows"),
        (FRAME[["ill", "hospital"]], {}, "f.csv has no column beside 'ill'"),
        (at("ill", 4, None), {}, "data.label = 'ill': 1 of 60 rows of f.csv have no label, the first at 4; set data.d"),
        (changed("ill", [None] * N), {"drop_unlabelled": True}, "no row of f.csv has a label"),
        (changed("ill", [0.5, 1.0] * 30), {}, "30 labels of f.csv are no whole numbers, such as 0.5, the first at 0,"),
        (changed("ill", [np.inf, 1.0] * 30), {}, "30 labels of f.csv are no whole numbers, such as inf"),
        (changed("ill", pd.date_range("2001", periods=N)), {}, "has Timestamp.* there; labels of classes are"),
        (changed("ill", [[1], [2]] * 30), {}, r"has \[1\] there; labels of classes are"),
        (FRAME, {"label": "age", "drop": ["ill"], "max_categories": 20}, "58 labels of f.csv are no whole|has 60 diff"),
        (FRAME, {"classes": ["yes"]}, r"data.classes = \['yes'\]: f.csv has other labels: no"),
        (at("hospital", 7, None), {}, "data.node = 'hospital': 1 rows of f.csv have no value there, the first at 7"),
        (changed("part", ["a", "train"] * 30), {"split": "part"}, "data.split = 'part': f.csv has the values a; valid"),
        (changed("part", "train"), {"split": "part"}, "f.csv leaves no test rows, of 60"),
        (changed("part", "test"), {"split": "part"}, "f.csv leaves no training rows, of 60"),
        (changed("when", ["x"] * N), {"time": "when"}, "data.time = 'when': f.csv has 'x' there; times are numbers or"),
        (at("age", 3, np.nan), {"time": "age"}, "data.time = 'age': 1 rows of f.csv have no value there, the first at"),
        (at("age", 3, np.inf), {}, "column 'age' of f.csv has 1 values that are infinite or beyond 1e.30, the first a"),
        (at("age", 3, -2e30), {}, "column 'age' of f.csv has 1 values that are infinite"),
        (changed("day", pd.date_range("2001", periods=N)), {}, "column 'day' of f.csv has dates"),
        (changed("list", [[1]] * N), {}, "column 'list' of f.csv has values of type list; a cell is a number or a tex"),
        (changed("id", [f"id{i}" for i in range(N)]), {}, "column 'id' of f.csv has 60 categories in 60 rows; add it"),
        (changed("sex", [str(i % 7) + "x" for i in range(N)]), {"max_categories": 6}, "7 categories in 60 rows; .* ="),
        (changed("dose", [f"{i},5" for i in range(N)]), {}, "column 'dose' of f.csv looks numeric, but has '0,5' as a"),
        (changed("dose", [f"{i} %" for i in range(N)]), {}, "column 'dose' of f.csv looks numeric, but has '0 %' as a"),
        (changed("dose", [*map(str, range(N - 1)), "n.a."]), {}, "'dose' of f.csv looks numeric, but has 'n.a.' as a"),
        (FRAME, {"columns": {"sex": "numeric"}}, "data.columns.sex = 'numeric': f.csv has 'male' there"),
        (FRAME, {"text": "age"}, "data.text = 'age': 60 values are no texts, such as 20.0, the first at 0, 1, 2"),
        (pd.concat([FRAME, FRAME[["age"]]], axis=1), {}, "f.csv has 1 column names twice: age"),
    ],
)  # fmt: skip
def test_wrong_columns_are_refused_by_name(frame: pd.DataFrame, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(frame, **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,a,y\n1,2,3\n", "a.csv has 1 column names twice: a"),
        ("a.csv", b"", "a.csv cannot be read: No columns"),
        ("a.csv", b"a,y\n\xff,1\n", "a.csv is not UTF-8: 'utf-8' codec can't decode .*; save it as UTF-8"),
        ("a.csv", b"a,y\n1,2,3,4\n1,2\n1\n", "a.csv has 2 columns, but 4 cells in its first row"),
        ("a.parquet", b"PAR1 no", "a.parquet cannot be read"),
        ("a.csv", b"a;y\n1;2\n", "its columns are not separated by commas"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        from_file(tmp_path / name, SetsConfig(label="y"))


def federation(path: Path, frame: pd.DataFrame, **options: Any) -> Any:
    frame.to_csv(path / "f.csv", index=False)
    given = {"file": str(path / "f.csv"), **OPTIONS, "partition": {"scheme": "natural"}, **options}
    return federate(DataConfig(**{key: value for key, value in given.items() if value is not None}), 0)


def test_natural_nodes_in_the_order_of_their_names(tmp_path: Path) -> None:
    data = federation(tmp_path, changed("hospital", [[10, 9, 2][i % 3] for i in range(N)]))
    assert data.node_names == ("2", "9", "10")
    assert data.train_parts.lengths().tolist() == [16, 16, 16]
    own = data.test_of(0).inputs[:, 0]
    assert set(own) <= set(FRAME["age"][2::3])
    one_row = federation(
        tmp_path, at("hospital", 5, "alone"), test=0.3, partition={"scheme": "natural", "small": "drop"}
    )
    assert one_row.node_names == ("h0", "h1", "h2")
    assert any("1 of 4" in note and "with no node" in note for note in one_row.notes)


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (at("hospital", 5, "alone"), {}, r"1 nodes have fewer than 2 training samples: alone \(1\); set"),
        (
            changed("sex", ["a"] * 50 + list("bcdefghijk")).assign(part=["train"] * 50 + ["test"] * 10),
            {"split": "part"},
            r"data: column 'sex' of node h0: 3 of 3 test values are no category of a training row",
        ),
        (
            changed("age", [np.nan] * 50 + [1.0] * 10).assign(part=["train"] * 50 + ["test"] * 10),
            {"split": "part"},
            "column 'age' has no value in any training row",
        ),
        (changed("empty", None), {}, "column 'empty' has no value in any training row; drop it"),
        (FRAME, {"missing": "zero"}, "data.missing = 'zero': the samples are rows; valid are mean, median, indicator"),
        (FRAME, {"size": 8}, "data.size = 8: it is for images; the set has rows"),
        (changed("ill", "yes"), {}, "has only one class, yes; it needs at least two"),
    ],
)
def test_what_no_federation_can_use_is_refused(
    tmp_path: Path, frame: pd.DataFrame, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        federation(tmp_path, frame, **options)


@pytest.mark.parametrize("odd", ["?", "12,5", "n.a."])
def test_one_text_among_few_numbers_is_no_category(odd: str) -> None:
    ages = [str(15 + i % 40) for i in range(N - 1)]
    with pytest.raises(InputError, match="column 'sex' of f.csv looks numeric, but has "):
        read(FRAME.assign(sex=[*ages, odd]))
    with pytest.raises(InputError, match="data.columns.sex = 'numeric': f.csv has .* there"):
        read(FRAME.assign(sex=[*ages, odd]), columns={"sex": "numeric"})


def test_the_key_of_a_column_with_spaces_is_quoted_and_few_numbers_with_a_text_are_noted() -> None:
    frame = FRAME.rename(columns={"visits": "visits a year"}).assign(
        sex=[["0", "1", "2", "3+"][i % 4] for i in range(N)]
    )
    notes = read(frame).notes
    assert any("data.columns.'visits a year' = 'categorical'" in note for note in notes)
    assert "column 'sex' has numbers and the texts '3+'; all are taken as categories" in notes


def test_a_categorical_type_says_that_numbers_are_categories() -> None:
    found = read(FRAME.assign(visits=pd.Categorical(FRAME["visits"])))
    assert found.about.columns[1].categories == ("0", "1", "2", "3", "4")


def test_names_that_differ_in_spaces_are_noted() -> None:
    found = read(FRAME.assign(ill=[["yes", "no", " yes", "No"][i % 4] for i in range(N)]))
    assert any("classes that differ in spaces or capitals only: 'No' and 'no', ' yes' and 'yes'" in n or
               "classes that differ in spaces or capitals only: ' yes' and 'yes', 'No' and 'no'" in n
               for n in found.notes)  # fmt: skip
    found = read(FRAME.assign(hospital=[["a", "a "][i % 2] for i in range(N)]))
    assert "nodes that differ in spaces or capitals only: 'a' and 'a '" in found.notes


def test_numbers_as_classes_are_noted() -> None:
    notes = read(FRAME.assign(ill=[1000 + 3 * min(i, 51) for i in range(N)]), node=None, drop=["hospital"]).notes
    assert any("there are 52 classes of 60 rows, 51 of them with one row. To predict numbers" in note for note in notes)


def test_the_named_index_of_a_parquet_file_is_a_column(tmp_path: Path) -> None:
    FRAME.assign(id=[f"p{i % 7}" for i in range(N)]).set_index("id").to_parquet(tmp_path / "f.parquet")
    found = from_file(tmp_path / "f.parquet", SetsConfig(**OPTIONS))
    assert found.about.columns[0].name == "id"


def test_parts_of_a_folder_that_lack_columns_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    FRAME[:30].drop(columns="age").to_parquet(folder / "a.parquet")
    FRAME[30:].to_parquet(folder / "b.parquet")
    with pytest.raises(InputError, match="b.parquet in .* has columns that a.parquet lacks: age"):
        from_file(folder, SetsConfig(**OPTIONS))


def test_classes_of_test_rows_only_are_refused_unless_they_are_named() -> None:
    frame = FRAME.assign(ill=["yes", "no"] * 29 + ["maybe"] * 2, part=["train"] * 50 + ["test"] * 10)
    with pytest.raises(InputError, match="'ill': f.csv has 1 classes in its test samples only: maybe; .* data.cl"):
        read(frame, split="part")
    assert read(frame, split="part", classes=["no", "yes", "maybe"]).classes == ("no", "yes", "maybe")


def test_a_column_without_a_value_at_some_nodes_names_them(tmp_path: Path) -> None:
    frame = FRAME.assign(age=[None if i % 3 else 20.0 + i for i in range(N)])
    data = federation(tmp_path, frame)
    assert [note for note in data.notes if "at 2 nodes" in note] == [
        "column 'age' has no training value at 2 nodes: h1, h2; the values of others say what it becomes there"
    ]


def test_missing_values_and_constant_columns_are_counted(tmp_path: Path) -> None:
    data = federation(tmp_path, FRAME.assign(same=1.5))
    assert any(note.startswith("column 'sex': ") and "test values are missing" in note for note in data.notes)
    assert "column 'same' is constant in all training rows" in data.notes


def test_the_first_rows_of_each_class_keep_their_nodes(tmp_path: Path) -> None:
    frame = FRAME.assign(hospital=[f"h{int(i >= 40)}" for i in range(N)])
    data = federation(tmp_path, frame, train_per_class=20)
    assert len(data.train.labels) == 40
    for node in range(2):
        assert all((age >= FRAME["age"][40]) == bool(node) for age in data.train_of(node).inputs[:, 0])


def test_keys_of_columns_are_for_files() -> None:
    with pytest.raises(ValueError, match="label is for the columns of a file; set file in place of name"):
        DataConfig(name="digits", label="y", partition={"scheme": "iid", "clients": 2})
    with pytest.raises(ValueError, match="split and time both say which rows are for tests"):
        DataConfig(file="a.csv", label="y", split="s", time="t", partition={"scheme": "iid", "clients": 2})


@pytest.mark.skipif(not SETS.is_dir(), reason="the real sets are not beside the project")
def test_real_tables() -> None:
    config = {"label": "disease", "node": "hospital", "drop": ["num"], "partition": {"scheme": "natural"}}
    heart = federate(DataConfig(file=str(SETS / "heart.csv"), **config), 0)
    both = heart.train_parts.lengths() + heart.test_parts.lengths()
    assert dict(zip(heart.node_names, both.tolist(), strict=True)) == {
        "cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200,
    }  # fmt: skip
    assert (len(heart.spec.numeric()), len(heart.spec.categorical())) == (6, 7)
    missing = np.isnan(np.concatenate([heart.train.inputs, heart.test.inputs])).sum(0)
    absent = dict(zip([column.name for column in heart.spec.columns], missing.tolist(), strict=True))
    assert {name: count for name, count in absent.items() if count} == {
        "ca": 611, "thal": 486, "slope": 309, "fbs": 90, "oldpeak": 62, "trestbps": 59, "thalach": 55, "exang": 55,
        "chol": 30, "restecg": 2,
    }  # fmt: skip
    leaking = from_file(SETS / "heart.csv", SetsConfig(label="disease", node="hospital"))
    assert any("'num' says the label" in note for note in leaking.notes)
    rodents = {"label": "species", "node": "plot", "partition": {"scheme": "natural"}}
    data = federate(DataConfig(file=str(SETS / "rodents.parquet"), **rodents), 0)
    assert data.clients == 24
    assert data.node_names[:2] == ("1", "2")
    both = data.train_parts.lengths() + data.test_parts.lengths()
    assert (both.min(), both.max()) == (271, 2280)

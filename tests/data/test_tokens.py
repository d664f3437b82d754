"""Texts as words, as bytes, and as ids that they are already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.config import SetsConfig
from fedkd.data.arrays import from_arrays
from fedkd.data.codec import fit
from fedkd.data.encoder import Encoder
from fedkd.data.tokens import texts_as_tokens, words_of
from fedkd.errors import InputError

TEXTS = ["The cat sat.", "the dog SAT on the cat", "A dog!"]


def ids_of(texts: list[Any], training: int, **options: Any) -> tuple[np.ndarray, list[str]]:
    """Return texts as models get them; the first `training` ones teach the words."""
    notes: list[str] = []
    tokens, spec = texts_as_tokens(texts, SetsConfig(text="t", **options), notes)
    codec = fit(spec, tokens, np.arange(training), min_count=2)
    return Encoder(codec, torch.device("cpu"))(torch.from_numpy(tokens)).numpy(), notes


def test_the_words_of_training_texts_that_occur_twice_are_known() -> None:
    found, notes = ids_of([*TEXTS, "The bird sat on the mat"], 3)
    assert found.shape == (4, 8)
    assert found[0].tolist() == [4, 5, 7, 1, 0, 0, 0, 0]  # the 4, cat 5, dog 6, sat 7
    assert found[2].tolist() == [1, 6, 1, 0, 0, 0, 0, 0]
    assert found[3].tolist() == [4, 1, 7, 1, 4, 1, 0, 0]
    assert notes == []
    assert words_of("Don't 3.5 Éa!") == ["don", "'", "t", "3", ".", "5", "éa", "!"]


def test_bytes_need_no_training_text() -> None:
    found, _ = ids_of(["Hé", "\ud800"], 1, tokenizer="bytes")
    assert found[0, :4].tolist() == [76, 199, 173, 0]
    assert found[1, 0] == ord("?") + 4  # half a letter


def test_empty_and_long_texts_are_counted() -> None:
    found, notes = ids_of(["", None, float("nan"), "a a a a a a a a a a"], 4, length=8)
    assert found[:3, 0].tolist() == [1, 1, 1]
    assert found.shape == (4, 8)
    assert notes == [
        "3 texts are empty; each becomes one unknown token",
        "1 texts have more than 8 tokens and are cut at the end",
    ]
    with pytest.raises(InputError, match="data.length = 2: 1 texts have more tokens; set data.longer = 'cut'"):
        ids_of(["a b c"], 1, length=2, longer="refuse")
    with pytest.raises(InputError, match="data.text = 't': 2 values are no texts, such as 3, the first at 1, 2"):
        ids_of(["a", 3, 4.5], 1)


X = np.array([[5, 6, 7, 0], [4, 0, 0, 0], [9, 8, 7, 6]])


def ids(**changes: Any) -> dict[str, Any]:
    labels = np.array([0, 1, 0])
    arrays = {"kind": np.array("tokens"), "x_train": X, "y_train": labels, "x_test": X, "y_test": labels}
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def test_ids_stay_as_they_are() -> None:
    data = from_arrays(ids(), SetsConfig(), "s")
    assert data.train.inputs.tolist() == [[*row, 0, 0, 0, 0] for row in X.tolist()]
    assert data.about.words == tuple(map(str, range(10)))
    assert not data.about.learned
    codec = fit(data.about, data.train.inputs, np.arange(3))
    assert codec.form.vocabulary == 10
    encoded = Encoder(codec, torch.device("cpu"))(torch.from_numpy(data.train.inputs))
    assert np.array_equal(encoded.numpy(), data.train.inputs)
    guessed = from_arrays(
        ids(kind=None, length_train=np.array([3, 1, 4]), length_test=np.array([3, 1, 2])), SetsConfig(), "s"
    )
    assert guessed.about.kind == "tokens"
    assert guessed.test.inputs[2].tolist() == [9, 8, 0, 0, 0, 0, 0, 0]
    words = np.array(["<pad>", "<unknown>", "<start>", "<mask>", *"abcdefg"])
    assert from_arrays(ids(words=words), SetsConfig(), "s").about.words[-1] == "g"
    empty = from_arrays(ids(x_test=np.zeros((3, 4), int)), SetsConfig(), "s")
    assert empty.test.inputs[:, 0].tolist() == [1, 1, 1]
    assert empty.notes == ("3 texts are empty; each becomes one unknown token",)
    cut = from_arrays(ids(), SetsConfig(length=3), "s")
    assert cut.train.inputs[2].tolist() == [9, 8, 7, 0, 0, 0, 0, 0]
    assert len(cut.notes) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": X.astype(float)}, "x_train in s is float64, 3 x 4; ids of tokens are whole numbers"),
        ({"x_test": X + 5}, "x_test in s has .* ids that are not 0 to 9, such as 10, .*name all words in an array"),
        ({"x_test": X - 1}, "x_test in s has .* ids that are not 0 to 9, such as -1"),
        ({"words": np.array(list("abcdef"))}, "x_train in s has .* ids that are not 0 to 5, such as 6"),
        ({"x_train": np.array([[5, 0, 6]] * 3)}, r"3 ids 0 before the end of a text, the first at \[0, 1\], \[1, 1\]"),
        ({"length_train": np.array([5, 1, 4])}, "length_train in s has 1 values that are not 0 to 4, the first at 0"),
        ({"length_train": np.array([1, 1])}, "length_train in s must have a whole number for each text"),
        ({"length_train": np.array([4, 1, 4])}, r"1 ids 0 before the end of a text, the first at \[0, 3\]"),
    ],
)
def test_wrong_ids_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays(ids(**changes), SetsConfig(), "s")
    with pytest.raises(InputError, match=r"data.length = 2: 2 texts have more tokens"):
        from_arrays(ids(), SetsConfig(length=2, longer="refuse"), "s")


def test_repeated_texts_are_on_one_side(tmp_path: Path) -> None:
    from fedkd.data.table_files import from_rows

    lines = [f"text {i % 20},{'ab'[i % 2]}" for i in range(100)]
    (tmp_path / "t.csv").write_text("\n".join(["t,y", *lines]))
    data = from_rows(tmp_path / "t.csv", SetsConfig(label="y", text="t"))
    one, two = ({tuple(row) for row in part.inputs.tolist()} for part in (data.train, data.test))
    assert one
    assert two
    assert not one & two
    assert "80 texts are repeated; equal ones are all training or all test texts" in data.notes

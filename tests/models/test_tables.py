"""Models for tables: published sizes, and one row as codes and as probabilities."""

from __future__ import annotations

import pytest
import torch

from fedkd.data.spec import Form
from fedkd.models.build import build
from fedkd.models.tables import Columns, embedding_width, one_hot
from fedkd.streams import default_stream, torch_stream

HEART = Form("table", (13,), cards=(2, 4, 2, 3, 2, 3, 3))


@pytest.fixture(autouse=True)
def _stream() -> object:
    with default_stream(torch_stream(0, 0, "server", "test")):
        yield


def _rows(form: Form, count: int = 5) -> torch.Tensor:
    return form.drawn(count, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("form", "classes", "parameters"),
    [(HEART._replace(cards=(3, 5, 3, 4, 3, 4, 4)), 2, 20_039), (Form("table", (6,), cards=(6, 3)), 13, 19_627)],
)
def test_the_perceptron_has_the_size_of_its_columns(form: Form, classes: int, parameters: int) -> None:
    model = build("table_mlp", {}, form, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.classifier.in_features == 128


def test_the_width_of_an_embedding_grows_to_fifty() -> None:
    # n categories and one more code: (n + 1) // 2 + 1
    assert [embedding_width(n + 1) for n in (1, 2, 3, 10, 97, 1000)] == [2, 2, 3, 6, 50, 50]


@pytest.mark.parametrize(
    "form", [HEART, Form("table", (3,), cards=(1, 1)), Form("table", (4,)), Form("table", (2,), (4, 2))]
)
def test_probabilities_of_one_code_are_the_code(form: Form) -> None:
    model = build("table_mlp", {"hidden": [8]}, form, 3).eval()
    rows = _rows(form)
    shares = one_hot(rows, form)
    assert shares.shape[1] == form.numbers + sum(form.cards)
    assert torch.allclose(model(shares), model(rows), atol=1e-6)
    half = (one_hot(rows[:1], form) + one_hot(rows[1:2], form)) / 2
    columns = Columns(form)
    assert torch.allclose(columns(half)[0], (columns(rows[:1])[0] + columns(rows[1:2])[0]) / 2, atol=1e-6)


def test_a_table_without_hidden_layers_is_linear() -> None:
    model = build("table_mlp", {"hidden": []}, HEART, 2)
    assert model.classifier.in_features == model.features[0].width
    assert model(_rows(HEART)).shape == (5, 2)

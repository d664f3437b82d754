"""Generators of rows, series and texts: their forms, their gradients, and models that take what they make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedkd.data.spec import MASKED, PAD, START, UNKNOWN, Form
from fedkd.distillation.sample_generators import as_codes, generator_of, takes_probabilities
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream

TABLE = Form("table", (5,), (3, 4))  # three numbers, two categories
SERIES = Form("series", (4, 11))
TEXTS = Form("tokens", (16,), vocabulary=9)
FORMS = [TABLE, SERIES, Form("array", (2, 3)), Form("table", (2,), (3, 4)), Form("image", (5, 6, 7)), TEXTS]

MINE = """
import torch
from torch import nn
class Mine(nn.Module):
    def __init__(self, form, classes):
        super().__init__()
        self.table, self.head = nn.Parameter(torch.randn(form.vocabulary, 6)), nn.Linear(6, classes)
    def forward(self, x, mask):
        words = {words}
        return self.head((words * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))
def build(form, classes):
    return Mine(form, classes)
"""


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind}{form.shape}")
def test_samples_are_of_the_form_and_carry_gradients(form: Form) -> None:
    with default_stream(torch_stream(0, 0, 0, "generator")):
        generator = generator_of(form, 6, 3, 8)
        noise, labels = torch.randn(16, 6), torch.arange(16) % 3
        made = generator.train()(noise, labels)
        made.square().sum().backward()
        assert all(parameter.grad is not None for parameter in generator.parameters())
        assert as_codes(made, form).shape == (16, *form.shape)
        still = generator.eval()(noise, labels)
        assert torch.equal(still, generator(noise, labels))  # without draws
    if form.kind == "table":
        categories = made[:, form.numbers :].split(list(form.cards), dim=1)
        assert all(torch.equal(one.detach().sum(1).round(), torch.ones(16)) for one in categories)
        codes = as_codes(still, form)[:, form.numbers :]
        assert all(int(codes[:, i].max()) < card for i, card in enumerate(form.cards))
    if form.kind == "series":
        assert torch.equal(made[:, -1], torch.ones(16, 11))


def test_labels_change_what_is_made() -> None:
    with default_stream(torch_stream(0, 0, 0, "generator")):
        generator = generator_of(SERIES, 6, 3, 8).eval()
        noise = torch.randn(4, 6)
    made = [generator(noise, torch.full((4,), label)) for label in (0, 1)]
    assert not torch.allclose(*made)


@pytest.mark.parametrize(
    ("form", "tokens"),
    [(TEXTS, 16), (Form("tokens", (40,), vocabulary=5), 32), (Form("tokens", (8,), vocabulary=2), 8)],
)
def test_texts_are_probabilities_of_words_without_padding(form: Form, tokens: int) -> None:
    with default_stream(torch_stream(0, 0, 0, "generator")):
        generator = generator_of(form, 6, 3, 8)
        noise, labels = torch.randn(16, 6, requires_grad=True), torch.arange(16) % 3
        made = generator.train()(noise, labels)
    assert made.shape == (16, tokens, form.vocabulary)
    torch.testing.assert_close(made.sum(2), torch.ones(16, tokens))
    possible = [word for word in range(form.vocabulary) if word not in (PAD, START, MASKED)]
    assert possible[0] == UNKNOWN
    for word in range(form.vocabulary):
        assert bool(((made[:, :, word] > 0) if word in possible else (made[:, :, word] == 0)).all())
    assert set(as_codes(made, form).unique().tolist()) <= set(possible)
    (gradient,) = torch.autograd.grad(made.square().sum(), noise)
    assert bool(gradient.isfinite().all())
    assert bool((gradient != 0).any(1).all()) == (len(possible) > 1)
    assert all(bool(tensor.isfinite().all()) for tensor in generator.state_dict().values())


def test_which_models_take_texts_as_probabilities(tmp_path: Path) -> None:
    with default_stream(torch_stream(0, 0, 0, "model")):
        for name in ("text_cnn", "text_transformer"):
            assert takes_probabilities(build(name, {}, TEXTS, 3), TEXTS)
            assert takes_probabilities(build(name, {}, TEXTS, 3).train(), TEXTS)
        config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 8, "vocab_size": 9}))
        assert not takes_probabilities(build(f"transformers:{tmp_path}", {}, TEXTS, 3), TEXTS)
        for name, words in (
            ("takes", "x @ self.table if x.is_floating_point() else self.table[x]"),
            ("fails", "self.table[x]"),
            ("differs", "self.table[x if x.dim() == 2 else x.argmin(2)]"),
        ):
            (tmp_path / f"{name}.py").write_text(MINE.format(words=words))
            assert takes_probabilities(build(f"{tmp_path / name}.py:build", {}, TEXTS, 3), TEXTS) == (name == "takes")


def test_which_models_take_categories_as_probabilities() -> None:
    with default_stream(torch_stream(0, 0, 0, "model")):
        assert takes_probabilities(build("table_mlp", {"hidden": [8]}, TABLE, 3), TABLE)
        assert not takes_probabilities(build("mlp", {"hidden": [8]}, TABLE, 3), TABLE)
        numbers = Form("table", (5,))
        assert takes_probabilities(build("mlp", {"hidden": [8]}, numbers, 3), numbers)

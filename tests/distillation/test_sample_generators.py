"""Generators of rows and series: their forms, their gradients, and models that take what they make."""

from __future__ import annotations

import pytest
import torch

from fedkd.data.spec import Form
from fedkd.distillation.sample_generators import as_codes, generator_of, takes_probabilities
from fedkd.errors import InputError
from fedkd.models.build import build
from fedkd.streams import default_stream, torch_stream

TABLE = Form("table", (5,), (3, 4))  # three numbers, two categories
SERIES = Form("series", (4, 11))
FORMS = [TABLE, SERIES, Form("array", (2, 3)), Form("table", (2,), (3, 4)), Form("image", (5, 6, 7))]


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


def test_tokens_have_no_generator() -> None:
    with pytest.raises(InputError, match="tokens have no gradient"):
        generator_of(Form("tokens", (8,), vocabulary=9), 6, 3, 8)


def test_which_models_take_categories_as_probabilities() -> None:
    with default_stream(torch_stream(0, 0, 0, "model")):
        assert takes_probabilities(build("table_mlp", {"hidden": [8]}, TABLE, 3), TABLE)
        assert not takes_probabilities(build("mlp", {"hidden": [8]}, TABLE, 3), TABLE)
        numbers = Form("table", (5,))
        assert takes_probabilities(build("mlp", {"hidden": [8]}, numbers, 3), numbers)

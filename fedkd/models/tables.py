"""Models for tables: each column is a number or a category."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import Form
from .zoo import Classifier, Width, serves

Share = Annotated[float, Field(ge=0, lt=1)]


class Columns(nn.Module):
    """Joins a row's numbers with an embedding of each of its categories.

    A row, B x (numbers + categories), as `Form` says; or with the categories as probabilities (`one_hot`).
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.numbers, self.cards = form.numbers, form.cards
        self.embeddings = nn.ModuleList(nn.Embedding(card, embedding_width(card)) for card in form.cards)

    @property
    def width(self) -> int:
        """Return the number of values of a row."""
        return self.numbers + sum(embedding_width(card) for card in self.cards)

    def forward(self, rows: Tensor) -> Tensor:
        """Return B x width. Rows with probabilities have as many columns as `one_hot` gives."""
        parts, categories = [rows[:, : self.numbers]], rows[:, self.numbers :]
        if categories.shape[1] != len(self.cards):
            shares = categories.split(list(self.cards), dim=1)
            parts += [share @ embedding.weight for share, embedding in zip(shares, self.embeddings, strict=True)]
        else:
            one_code = sum(self.cards) == len(self.cards)  # of each category: probabilities and codes look alike
            codes = (torch.zeros_like(categories) if one_code else categories).long().unbind(1)
            parts += [embedding(code) for code, embedding in zip(codes, self.embeddings, strict=True)]
        return torch.cat(parts, dim=1)


def embedding_width(card: int) -> int:
    """Return the width of the embedding of a column with this number of codes: of n categories, (n + 1) / 2 + 1."""
    return min(50, card // 2 + 1)


def one_hot(rows: Tensor, form: Form) -> Tensor:
    """Return rows with each category as probabilities: B x (numbers + all codes)."""
    codes = rows[:, form.numbers :].long().unbind(1)
    parts = [F.one_hot(code, card).to(rows.dtype) for code, card in zip(codes, form.cards, strict=True)]
    return torch.cat([rows[:, : form.numbers], *parts], dim=1)


@serves("table")
def table_mlp(
    form: Form,
    classes: int,
    *,
    hidden: list[Width] = [128, 128],  # noqa: B006
    dropout: Share = 0.1,
) -> nn.Module:
    """Return a perceptron on numbers and embeddings of categories, as the baseline of Gorishniy et al. (2021)."""
    columns = Columns(form)
    layers: list[nn.Module] = [columns]
    for width, following in pairwise([columns.width, *hidden]):
        layers += [nn.Linear(width, following), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return Classifier(nn.Sequential(*layers), hidden[-1] if hidden else columns.width, classes)

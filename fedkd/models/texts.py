"""Models for tokens. Id 0 is behind the end of a text; longer padding changes nothing.

A text is ids, B x L, or probabilities over the vocabulary, B x L x V, such as a generator's: all its positions
are tokens, and a word is the mean of the embeddings, weighted by the probabilities.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.spec import PAD, Form
from .tables import Share
from .zoo import Classifier, Width, serves


def is_token(texts: Tensor) -> Tensor:
    """Return where texts, B x L or B x L x V, have a token, bool, B x L."""
    if texts.dim() == 3:
        return texts.new_ones(texts.shape[:2], dtype=torch.bool)
    return texts != PAD


def embedded(texts: Tensor, embedding: nn.Embedding, more: int = 0) -> Tensor:
    """Return the words of texts, B x (L + more) x D; `more`: paddings to put behind each of them."""
    if texts.dim() == 2:
        words: Tensor = embedding(F.pad(texts, (0, more)))
        return words
    # looked up, and not `weight`: an adapter of the layer counts, and the padding gets no gradient, as with ids
    vocabulary = embedding(torch.arange(texts.shape[2], device=texts.device))
    return torch.cat([texts @ vocabulary, vocabulary[PAD].expand(len(texts), more, -1)], dim=1)


class _TextCnn(nn.Module):
    def __init__(self, vocabulary: int, width: int, filters: int, lengths: list[int], dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        self.convs = nn.ModuleList(nn.Conv1d(width, filters, length) for length in lengths)
        self.longest = max(lengths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features, B x D, of tokens, B x L or B x L x V."""
        # with paddings, a kernel begins at each token, however short the text is
        words = embedded(tokens, self.embedding, self.longest - 1).transpose(1, 2)
        here = is_token(tokens)[:, None]
        found = []
        for conv in self.convs:
            response = F.relu(conv(words))[:, :, : tokens.shape[1]]
            found.append(torch.where(here, response, 0).amax(2))
        return self.dropout(torch.cat(found, dim=1))


@serves("tokens")
def text_cnn(
    form: Form,
    classes: int,
    *,
    width: Width = 64,
    filters: Width = 64,
    lengths: list[Width] = [3, 4, 5],  # noqa: B006
    dropout: Share = 0.5,
) -> nn.Module:
    """Return Kim's CNN for sentences (2014), with embeddings from scratch."""
    trunk = _TextCnn(form.vocabulary, width, filters, lengths, dropout)
    return Classifier(trunk, filters * len(lengths), classes)


class _TextTransformer(nn.Module):
    def __init__(self, form: Form, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(form.vocabulary, width, padding_idx=PAD)
        self.positions = nn.Parameter(0.02 * torch.randn(form.shape[0], width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, batch_first=True, norm_first=True, activation="relu"
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features, B x D, of tokens, B x L or B x L x V: the mean over a text's tokens."""
        if tokens.shape[1] > len(self.positions):
            raise ValueError(f"texts have {tokens.shape[1]} tokens; the model has positions for {len(self.positions)}")
        here = is_token(tokens)
        words = embedded(tokens, self.embedding) + self.positions[: tokens.shape[1]]
        found: Tensor = self.layers(words, src_key_padding_mask=~here)
        return (found * here[:, :, None]).sum(1) / here.sum(1, keepdim=True).clamp(min=1)


@serves("tokens")
def text_transformer(
    form: Form,
    classes: int,
    *,
    width: Width = 64,
    layers: Width = 2,
    heads: Annotated[int, Field(ge=1)] = 4,
    dropout: Share = 0.1,
) -> nn.Module:
    """Return a small transformer with learned positions, norm first, and the mean over a text's tokens."""
    return Classifier(_TextTransformer(form, width, layers, heads, dropout), width, classes)

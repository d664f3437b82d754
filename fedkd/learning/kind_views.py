"""Views of rows, series and texts: random changes of encoded samples, with separate draws for each.

Rows: SCARF (Bahri et al., ICLR 2022, arXiv:2106.15147) and VIME (Yoon et al., NeurIPS 2020). Series: TS-TCC (Eldele et
al., IJCAI 2021, arXiv:2106.14112). Texts: token dropout, and a span that is cut, as in ConSERT. What is behind the end
of a series or text is never changed. All draws are from the given stream, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..data.spec import MASKED, PAD, START

SCARF_RATE = 0.3  # of the columns, in both views; the paper: 0.6 in one of them
VIME_RATE = 0.3
_WEAK_SCALE, _WEAK_JITTER = 0.1, 0.05  # deviations of a channel's factor and of a step's noise
_STRONG_JITTER, _SEGMENTS = 0.1, 5
CODE_SCALE, CODE_JITTER, _CODE_SEGMENTS = 1.1, 0.8, 8  # of TS-TCC's code, for HAR
_DROP, _CUT = 0.15, 0.2  # shares of a text's tokens


def scarf_view(rows: Tensor, pool: Tensor, groups: Sequence[int], rate: float, stream: torch.Generator) -> Tensor:
    """Return rows, B x F, of which some columns are those of other rows of `pool`, N x F, each of another one.

    floor(rate x columns) columns of each row, drawn without replacement; a donor is drawn for each cell. `groups`: the
    column that each encoded value belongs to, such as an indicator of a missing number.
    """
    columns = max(groups) + 1
    order = torch.rand(len(rows), columns, generator=stream).argsort(1).argsort(1)
    chosen = order < math.floor(rate * columns)
    donors = torch.randint(len(pool), (len(rows), columns), generator=stream)
    place = torch.tensor(groups)
    return replaced(rows, pool, chosen[:, place].to(rows.device), donors[:, place].to(rows.device))


def replaced(rows: Tensor, pool: Tensor, chosen: Tensor, donors: Tensor) -> Tensor:
    """Return rows with the chosen cells, B x F, from the pool's rows `donors`, B x F."""
    return torch.where(chosen, pool[donors, torch.arange(rows.shape[1], device=rows.device)], rows)


def vime_view(rows: Tensor, groups: Sequence[int], rate: float, stream: torch.Generator) -> Tensor:
    """Return rows of which each column is that of another row of the batch with probability `rate`."""
    columns = max(groups) + 1
    chosen = torch.rand(len(rows), columns, generator=stream) < rate
    donors = torch.rand(len(rows), columns, generator=stream).argsort(0)  # each column is permuted
    place = torch.tensor(groups)
    return replaced(rows, rows, chosen[:, place].to(rows.device), donors[:, place].to(rows.device))


def weak_series(series: Tensor, stream: torch.Generator) -> Tensor:
    """Return x f + e of each series, B x (channels + 1) x T: f ~ N(1, 0.1) for each channel, e ~ N(0, 0.05).

    TS-TCC's text; the code has one factor for each step, of mean 2, and no noise: `code_series`.
    """
    count, channels = len(series), series.shape[1] - 1
    factor = 1 + _WEAK_SCALE * torch.randn(count, channels, 1, generator=stream)
    return changed(series, factor, _WEAK_JITTER * _noise(series, stream))


def code_series(series: Tensor, stream: torch.Generator) -> Tensor:
    """Return each series times a factor for each step, N(2, 1.1), the same for all channels, as in TS-TCC's code."""
    return changed(series, 2 + CODE_SCALE * torch.randn(len(series), 1, series.shape[2], generator=stream), None)


def changed(series: Tensor, factor: Tensor, noise: Tensor | None) -> Tensor:
    """Return series times a factor plus noise, up to their ends."""
    values, mask = series[:, :-1], series[:, -1:]
    values = values * factor.to(series)
    if noise is not None:
        values = values + noise.to(series)
    return torch.cat([values * mask, mask], dim=1)


def strong_series(series: Tensor, stream: torch.Generator, *, code: bool = False) -> Tensor:
    """Return each series with its segments in another order, plus noise.

    1 to 4 segments (in the code for HAR: 7), cut at random steps; all channels alike. `code`: its noise, N(0, 0.8).
    """
    most, jitter = (_CODE_SEGMENTS, CODE_JITTER) if code else (_SEGMENTS, _STRONG_JITTER)
    steps = series.shape[2]
    order = torch.arange(steps).repeat(len(series), 1)
    for row, length in enumerate(series[:, -1].sum(1).long().tolist()):
        pieces = min(int(torch.randint(1, most, (1,), generator=stream)), max(length, 1))
        cuts = 1 + torch.randperm(max(length - 1, 0), generator=stream)[: pieces - 1].sort().values
        bounds = [0, *cuts.tolist(), length]
        parts = [torch.arange(a, b) for a, b in pairwise(bounds)]
        order[row, :length] = torch.cat([parts[i] for i in torch.randperm(len(parts), generator=stream)])
    return changed(permuted(series, order), torch.ones(()), jitter * _noise(series, stream))


def permuted(series: Tensor, order: Tensor) -> Tensor:
    """Return series with their steps in this order, B x T."""
    return series.gather(2, order.to(series.device)[:, None].expand(-1, series.shape[1], -1))


def _noise(series: Tensor, stream: torch.Generator) -> Tensor:
    count, channels, steps = series.shape
    return torch.randn(count, channels - 1, steps, generator=stream)


def dropped_tokens(tokens: Tensor, stream: torch.Generator) -> Tensor:
    """Return texts, B x L, of which each token is masked with probability 0.15; one at least stays."""
    here = (tokens != PAD) & (tokens != START)
    draws = torch.rand(tokens.shape, generator=stream).to(tokens.device)
    last = torch.where(here, draws, -1.0).argmax(1, keepdim=True)  # the token that would be masked last
    masked = here & (draws < _DROP)
    masked.scatter_(1, last, False)
    return torch.where(masked, MASKED, tokens)


def cut_tokens(tokens: Tensor, stream: torch.Generator) -> Tensor:
    """Return texts, B x L, without a span of a fifth of their tokens: there they are as behind their end."""
    lengths = (tokens != PAD).sum(1)
    spans = torch.ceil(_CUT * lengths).long()
    spans = torch.where(lengths > 1, spans, 0)  # a text of one token stays
    starts = (torch.rand(len(tokens), generator=stream).to(tokens.device) * (lengths - spans + 1)).long()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    inside = (place >= starts[:, None]) & (place < (starts + spans)[:, None]) & (tokens != START)
    return torch.where(inside, PAD, tokens)

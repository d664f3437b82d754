"""Siamese augmentation of rows and series: the same random change of a batch of real and of virtual samples.

The idea of `siamese` (Zhao and Bilen, 2021) with changes of these kinds: SCARF's columns of other rows (Bahri et al.,
ICLR 2022, arXiv:2106.15147), and usual ones of signals. Gradients pass through all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import GROUPS, AnyGroup, Group
from ..data.spec import Form, Kind
from ..errors import InputError
from .siamese import siamese_augment

GROUPS_OF: Mapping[Kind, tuple[AnyGroup, ...]] = {
    "image": GROUPS, "table": ("noise", "swap", "drop"), "series": ("jitter", "scale", "shift", "cut"), "array": (),
    "tokens": (),
}  # fmt: skip
_NOISE = 0.1  # deviations of the noise of numbers and steps, and of a channel's factor
_SWAPPED = 0.2  # the share of a row's columns that are swapped


def groups_of(kind: Kind, given: Sequence[AnyGroup], key: str = "strategy.augment") -> list[AnyGroup]:
    """Return the groups of changes for samples of a kind: the given ones, or all if those are the default, `GROUPS`.

    Raises InputError, which names the key, for groups of another kind.
    """
    valid = GROUPS_OF[kind]
    if tuple(given) == GROUPS:
        return list(valid)
    if wrong := [group for group in given if group not in valid]:
        names = f"valid: {', '.join(valid)}" if valid else "there are none for them"
        raise InputError(f"{key} = {wrong}: the samples are of kind {kind!r}; {names}.")
    return list(given)


def siamese_change(samples: Tensor, seed: int, groups: Sequence[AnyGroup], form: Form | None, pool: Tensor) -> Tensor:
    """Return the batch changed by one group of `groups`, drawn by `seed`; of images, `siamese_augment`.

    All samples change alike, so real and virtual ones with the same seed do. `samples`, and `pool`, the batch of real
    ones: as `model_inputs` gives them. Rows: noise, + 0.1 N(0, 1) of each number; swap, a fifth of the columns become
    those of one row of the pool; drop, one column becomes its mean: a number 0, a category the pool's shares
    (indicators of missing numbers are numbers here). Series, C x T: jitter, + 0.1 N(0, 1) of each step; scale, each
    channel times N(1, 0.1); shift, by up to T/8 steps, 0 beyond the border; cut, T/4 steps become 0. Masks stay, and
    what is behind the end is 0.
    """
    if form is None or form.kind == "image":
        return siamese_augment(samples, seed, cast(Sequence[Group], groups))
    if not groups:
        return samples
    stream = torch.Generator().manual_seed(seed)
    group = groups[int(torch.randint(len(groups), (1,), generator=stream))]
    change = _rows if form.kind == "table" else _series
    return change(samples, group, form, pool, stream)


def _rows(rows: Tensor, group: AnyGroup, form: Form, pool: Tensor, stream: torch.Generator) -> Tensor:
    if group == "noise":
        noise = torch.randn(form.numbers, generator=stream)
        return rows + _NOISE * F.pad(noise, (0, sum(form.cards))).to(rows)
    widths = torch.tensor([1] * form.numbers + [*form.cards])
    order = torch.randperm(len(widths), generator=stream)
    if group == "swap":
        chosen = order[: max(1, int(_SWAPPED * len(widths)))]
        other = pool[int(torch.randint(len(pool), (1,), generator=stream))]
    else:
        chosen = order[:1]
        other = torch.cat([torch.zeros_like(pool[0, : form.numbers]), pool[:, form.numbers :].mean(0)])
    here = torch.zeros(len(widths), dtype=torch.bool)
    here[chosen] = True
    return torch.where(here.repeat_interleave(widths).to(rows.device), other, rows)


def _series(series: Tensor, group: AnyGroup, form: Form, pool: Tensor, stream: torch.Generator) -> Tensor:
    values, mask = series[:, :-1], series[:, -1:]
    channels, steps = form.shape[0] - 1, form.shape[1]
    if group == "jitter":
        values = values + _NOISE * torch.randn(channels, steps, generator=stream).to(values)
    elif group == "scale":
        values = values * (1 + _NOISE * torch.randn(channels, 1, generator=stream)).to(values)
    elif group == "shift":
        reach = steps // 8
        first = int(torch.randint(2 * reach + 1, (1,), generator=stream))
        values = F.pad(values, (reach, reach))[:, :, first : first + steps]
    else:
        length = steps // 4
        first = int(torch.randint(steps - length + 1, (1,), generator=stream))
        place = torch.arange(steps, device=values.device)
        values = torch.where((place >= first) & (place < first + length), 0, values)
    return torch.cat([values * mask, mask], dim=1)

"""Virtual samples of each kind: what models get of them, which values may change, and the statistics of a class.

Images and arrays are free and are models' inputs as they are. A virtual row has its numbers as encoded, and logits in
place of the code of each category, which models get through softmax (as probabilities: see `Columns`). A virtual series
has a mask, as real ones; the mask and the steps behind the end never change. Without a form, samples are images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..data.spec import Form
from ..models.tables import one_hot

CERTAINTY = 0.95  # the probability of the code of a row that becomes virtual: near 1, a logit has hardly a gradient


def model_inputs(virtual: Tensor, form: Form | None) -> Tensor:
    """Return virtual samples as models take them: rows with categories as probabilities, N x (numbers + all codes)."""
    if form is None or not form.cards:
        return virtual
    numbers, *logits = virtual.split([form.numbers, *form.cards], dim=1)
    return torch.cat([numbers, *(one.softmax(1) for one in logits)], dim=1)


def real_inputs(real: Tensor, form: Form | None) -> Tensor:
    """Return encoded real samples in the form of `model_inputs`."""
    return real if form is None or not form.cards else one_hot(real, form)


def as_virtual(real: Tensor, form: Form | None) -> Tensor:
    """Return encoded real samples as virtual ones.

    The logit of a row's own code is log(r (codes - 1)), r = CERTAINTY / (1 - CERTAINTY), all others are 0: softmax
    gives it the probability CERTAINTY, however many codes there are.
    """
    if form is None or not form.cards:
        return real
    numbers, *categories = one_hot(real, form).split([form.numbers, *form.cards], dim=1)
    ratio = CERTAINTY / (1 - CERTAINTY)
    return torch.cat([numbers, *(one * math.log(max(ratio * (one.shape[1] - 1), 1.0)) for one in categories)], dim=1)


def free_part(gradient: Tensor, virtual: Tensor, form: Form | None) -> Tensor:
    """Return the gradient of virtual samples with 0 for a series' mask and for the steps behind its end."""
    if form is None or form.kind != "series":
        return gradient
    mask = virtual[:, -1:]
    free = torch.cat([mask.expand(-1, form.shape[0] - 1, -1), torch.zeros_like(mask)], dim=1)
    return torch.where(free > 0, gradient, 0)


def statistics_width(form: Form) -> int:
    """Return the number of means of a class: one for each channel (image, series), column and code, or value."""
    if form.kind == "table":
        return form.numbers + sum(form.cards)
    if form.kind == "array":
        return math.prod(form.shape)
    return form.shape[0] - (form.kind == "series")


def moments(samples: Tensor, form: Form | None) -> tuple[Tensor, Tensor]:
    """Return means and population deviations of encoded samples, each of `statistics_width`.

    Of rows, for each column, and for each code its share; of series, for each channel over the steps with mask 1.
    """
    if form is None or form.kind == "image":
        return samples.mean((0, 2, 3)), samples.var((0, 2, 3), correction=0).sqrt()
    if form.kind == "series":
        values, mask = samples[:, :-1], samples[:, -1:]
        count = mask.sum().clamp(min=1)
        mean = (values * mask).sum((0, 2)) / count
        return mean, (((values - mean[:, None]).square() * mask).sum((0, 2)) / count).sqrt()
    columns = real_inputs(samples, form).flatten(1)
    return columns.mean(0), columns.var(0, correction=0).sqrt()


def drawn_of_class(mean: Tensor, deviation: Tensor, count: int, form: Form, stream: torch.Generator) -> Tensor:
    """Return `count` virtual rows, series or arrays of a class from its `moments`; see `normal_samples`."""
    if form.kind == "series":
        noise = torch.randn(count, len(mean), form.shape[1], generator=stream)
        values = mean[:, None] + deviation[:, None] * noise
        return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
    if form.kind == "array":
        return (mean + deviation * torch.randn(count, len(mean), generator=stream)).view(count, *form.shape)
    numbers, *shares = mean.split([form.numbers, *form.cards])
    scaled = numbers + deviation[: form.numbers] * torch.randn(count, form.numbers, generator=stream)
    # the smallest number: shares that a node sends may all be 0
    codes = [(one.clamp(0, 1) + 1e-9).multinomial(count, replacement=True, generator=stream) for one in shares]
    return as_virtual(torch.cat([scaled, *(code[:, None].to(scaled.dtype) for code in codes)], dim=1), form)

"""Makes a model that takes a mask, or none, a function of one tensor, as batches of series and tokens are."""

from __future__ import annotations

import inspect
from typing import cast

from torch import Tensor, nn

from ..data.spec import Form
from ..errors import InputError
from .sources import Transformer
from .texts import is_token


class WithMask(nn.Module):
    """A model with `forward(x, mask)` as a function of one tensor: series with their mask, or tokens.

    The mask: bool, B x T, true for a step or token.
    """

    def __init__(self, model: nn.Module, series: bool) -> None:
        super().__init__()
        self.model, self.series = model, series

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, B x C."""
        if self.series:
            return cast(Tensor, self.model(inputs[:, :-1], mask=inputs[:, -1] > 0))
        return cast(Tensor, self.model(inputs, mask=is_token(inputs)))


class WithoutMask(nn.Module):
    """A model of series that takes no mask: steps behind a series' end are zeros."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, B x C."""
        return cast(Tensor, self.model(inputs[:, :-1]))


def lacks_mask(model: nn.Module, form: Form, *, knows_form: bool) -> bool:
    """Return whether a model of series or tokens has no way to know where a sample ends.

    `knows_form`: its builder took the form.
    """
    if form.kind not in ("series", "tokens") or isinstance(model, Transformer) or knows_form:
        return False
    return "mask" not in inspect.signature(model.forward).parameters


def of_one_tensor(model: nn.Module, form: Form, *, knows_form: bool, may_ignore: bool, key: str) -> nn.Module:
    """Return a model as a function of one batch, as `Form` describes it. Other models than of series and tokens stay.

    `knows_form`: its builder took the form. `may_ignore`: whether a model without a mask is right. Raises InputError if
    it is not.
    """
    if form.kind not in ("series", "tokens") or isinstance(model, Transformer):
        return model
    if "mask" in inspect.signature(model.forward).parameters:
        return WithMask(model, form.kind == "series")
    if not lacks_mask(model, form, knows_form=knows_form):
        return model
    if not may_ignore:
        raise InputError(
            f"{key}: the model's forward takes no mask, so it would read the zeros behind the end of a sample; write "
            "forward(x, mask), or set model.ignore_mask = true to let it read them."
        )
    return WithoutMask(model) if form.kind == "series" else model

"""The option `loss` of methods that distil from logits: any of `learning.kd_losses` in place of the method's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..config import NamedTable
from ..core.environment import Environment
from ..errors import InputError
from ..learning.kd_losses import KDLoss
from ..learning.training import BatchLoss, Loss, ModelLoss, Outputs, Own, full
from ..registry import find, options

Sends = Literal["logits", "probabilities"]
KEY = "strategy.loss"


def read_loss(table: NamedTable, number: int = 1) -> KDLoss:
    """Return the loss of a round that a config names. Raises InputError for a wrong name or option."""
    kind = find("kd_losses", table.name, f"{KEY}.name")
    loss: KDLoss = kind(**options(kind, table.options, KEY, common=["name"]))
    return loss.in_round(number)


def check_loss(table: NamedTable | None, environment: Environment, sends: Sends, *, labelled: bool) -> None:
    """Raise InputError for a loss that the method cannot have.

    `sends`: what targets are. `labelled`: whether the samples on which a method distils have labels that it may use.
    """
    if table is None:
        return
    loss, task = read_loss(table), environment.data.spec.task
    if task != "classification":
        raise InputError(f"{KEY} = {table.name!r} is for classes; data.task is {task!r}: remove it.")
    if loss.needs_logits and sends == "probabilities":
        raise InputError(
            f"{KEY} = {table.name!r} needs logits, and {environment.config.strategy.name} has probabilities: a row "
            "constant, which they do not have, changes it; choose another loss."
        )
    if loss.reads_labels and not labelled:
        raise InputError(
            f"{KEY} = {table.name!r} reads the labels of the public set, which has none that may be used; set "
            f"{KEY}.labels = 'teacher' (its most likely classes) or data.public.labelled = true."
        )
    if loss.needs_labels and len(environment.data.classes) < 3:
        raise InputError(f"{KEY} = {table.name!r} compares the other classes: with two there is only one.")


def loss_towards(loss: KDLoss, sends: Sends) -> Loss:
    """Return the loss of training towards targets as `with_labels` makes them."""
    if loss.compares:
        return BatchLoss(partial(_of_batch, loss=loss, sends=sends))
    return ModelLoss(partial(_of_outputs, loss=loss, sends=sends))


def with_labels(loss: KDLoss, targets: Tensor, labels: Tensor) -> Tensor:
    """Return targets, B x C, with the labels as a last column if the loss reads them."""
    return torch.cat([targets, labels.to(targets.dtype)[:, None]], dim=1) if loss.reads_labels else targets


def as_logits(targets: Tensor, sends: Sends) -> Tensor:
    """Return targets as logits, B x C: of probabilities their logarithms, which differ by a constant of each row."""
    return targets if sends == "logits" else targets.clamp(min=torch.finfo(targets.dtype).tiny).log()


def value_towards(logits: Tensor, targets: Tensor, loss: KDLoss, sends: Sends) -> Tensor:
    """Return a loss of a student's logits, B x C, towards targets as `with_labels` makes them."""
    labels = None
    if loss.reads_labels:
        targets, labels = targets[:, :-1], targets[:, -1].long()
    return loss(logits, as_logits(targets, sends), labels)


def _of_outputs(
    outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs], loss: KDLoss, sends: Sends
) -> Tensor:
    return value_towards(outputs.logits, targets, loss, sends)


def _of_batch(model: nn.Module, images: Tensor, targets: Tensor, own: Own, loss: KDLoss, sends: Sends) -> Tensor:
    return value_towards(full(model(images)), targets, loss, sends)

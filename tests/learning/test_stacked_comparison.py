"""Losses that compare the images of a batch: many clients in one step are clients alone, to float64 accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.learning import ADAMW, CLASSES, clients, model_of
from torch import Tensor, nn

from fedkd.distillation.virtual_images import Virtual
from fedkd.learning.stacked_comparison import compare_stacked, comparison_key, why_compared_alone
from fedkd.learning.stacked_models import NotStacked
from fedkd.learning.training import BatchLoss, LocalTraining, train_alone
from fedkd.strategies.fedlgd import anchored_loss
from fedkd.strategies.supcon_only import contrasted_loss


def anchored(regulariser: Any, k: int, model: nn.Module) -> BatchLoss:
    stream = torch.Generator().manual_seed(k)
    images = torch.randn(CLASSES, 1, 12, 12, generator=stream, dtype=torch.float64)
    return anchored_loss(Virtual(images, torch.arange(CLASSES)), 0.5, 0.2, regulariser)


LOSSES: dict[str, Callable[[int, nn.Module], BatchLoss]] = {
    "fedlgd": partial(anchored, "supcon"),
    "fedlgd, mmd": partial(anchored, "mmd"),
    "supcon_only": lambda k, m: contrasted_loss(1.0, 0.1),
}


def apart(make: Callable[[], list[LocalTraining]]) -> float:
    """Return the largest difference between stacked and alone: of a parameter, a buffer, a mean loss."""
    trainings = make()
    model, alone = trainings[0].model, []
    start = copy.deepcopy(model.state_dict())
    for local in trainings:
        model.load_state_dict(start)
        alone.append((train_alone(local), copy.deepcopy(model.state_dict())))
    model.load_state_dict(start)
    again, worst = make(), 0.0
    assert [why_compared_alone(local) for local in again] == [None] * len(again)
    assert len({comparison_key(local) for local in again}) == 1
    for stacked, (value, weights) in zip(compare_stacked(again, [start] * len(again)), alone, strict=True):
        worst = max([worst, abs(stacked.loss - value)])
        assert stacked.weights.keys() == weights.keys()
        worst = max([worst, *(float((stacked.weights[n] - t).double().abs().max()) for n, t in weights.items())])
    for one, other in zip(trainings, again, strict=True):
        assert torch.equal(one.order.get_state(), other.order.get_state())
    return worst


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("case", LOSSES)
def test_clients_in_one_step_are_clients_alone(case: str, norm: str) -> None:
    """Batches of 16, and last ones of 8, 10, 17 and 12: each size of a step is a group."""
    model = model_of("convnet", channels=[6], norm=norm)
    assert apart(partial(clients, model, loss=LOSSES[case], augment="crop_flip", clip=1.0)) < 1e-10


@pytest.mark.parametrize("changes", [{"epochs": 9, "steps": 5}, {"optimizer": ADAMW}, {"sizes": (32, 32, 16)}])
def test_steps_optimisers_and_equal_sizes(changes: dict[str, Any]) -> None:
    assert apart(partial(clients, model_of("mlp", hidden=[12]), loss=LOSSES["fedlgd"], **changes)) < 1e-8


def test_other_losses_and_anchors_are_another_group() -> None:
    model = model_of("mlp", hidden=[12])
    losses = [LOSSES["fedlgd"], LOSSES["fedlgd, mmd"], LOSSES["supcon_only"], lambda k, m: contrasted_loss(2.0, 0.1)]
    keys = [comparison_key(clients(model, loss=loss)[0]) for loss in losses]
    keys += [comparison_key(clients(model, loss=losses[0], **c)[0]) for c in ({"clip": 9.0}, {"batch_size": 8})]
    assert len(set(keys)) == len(keys)


def test_a_loss_that_reads_numbers_is_refused_and_the_streams_stay() -> None:
    def of_batch(model: nn.Module, images: Tensor, targets: Tensor, own: Any) -> Tensor:
        value: Tensor = model(images).sum()
        return value * float(value.detach())

    made = clients(model_of("mlp", hidden=[12]), loss=lambda k, m: BatchLoss(of_batch))
    before = [local.order.get_state() for local in made]
    with pytest.raises(NotStacked):
        compare_stacked(made, [made[0].model.state_dict()] * 4)
    assert all(torch.equal(local.order.get_state(), state) for local, state in zip(made, before, strict=True))


def test_bf16_and_dropout_train_alone() -> None:
    model = model_of("mlp", hidden=[12])
    made = clients(model, loss=LOSSES["fedlgd"], half=torch.bfloat16)
    assert why_compared_alone(made[0]) == "16 bits with a loss that compares the images of a batch"
    model.features.append(nn.Dropout(0.1))  # type: ignore[union-attr, operator]
    assert "Dropout" in str(why_compared_alone(clients(model, loss=LOSSES["fedlgd"])[0]))

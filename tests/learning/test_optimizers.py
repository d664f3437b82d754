"""Optimisers are those that the config names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers.linear import model
from torch import nn

from fedkd import InputError
from fedkd.config import Adam, ScheduleConfig, Sgd, TrainConfig
from fedkd.learning.optimizers import corrected_steps, make_optimizer, scheduled


@pytest.fixture(autouse=True)
def _restore_streams() -> object:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)  # nn.Linear above draws from it before it is overwritten


def test_optimisers_are_the_named_ones() -> None:
    ours, theirs = model(), model()
    theirs.load_state_dict(ours.state_dict())
    pair = (
        make_optimizer(ours, Sgd(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.2)),
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.2, foreach=True),
    )
    for step in range(4):
        for net, optimizer in zip((ours, theirs), pair, strict=True):
            optimizer.zero_grad()
            moved = net.parameters() if step != 2 else [net[1].weight]  # in one step the bias has no gradient
            sum((parameter + 1).square().sum() for parameter in moved).backward()
            optimizer.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert type(make_optimizer(model(), Adam(name="adam"))) is torch.optim.Adam
    assert type(make_optimizer(model(), Adam(name="adamw", weight_decay=0.1))) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
        ({"name": "adam", "lr": 0.1, "betas": [0.5, 0.9], "amsgrad": True}, torch.optim.Adam),
        ({"name": "rmsprop", "lr": 0.1, "alpha": 0.5}, torch.optim.RMSprop),
        ({"name": "nadam", "lr": 0.1}, torch.optim.NAdam),
    ],
)
def test_any_optimiser_of_torch_takes_its_options(table: dict[str, Any], kind: Any) -> None:
    optimizer = make_optimizer(model(), TrainConfig.model_validate({"optimizer": table}).optimizer)
    assert type(optimizer) is kind
    for key, value in table.items():
        if key != "name":
            assert optimizer.param_groups[0][key] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "rmspop", "lr": 0.1}, r"train.optimizer.name: unknown 'rmspop'; did you mean 'rmsprop'?"),
        ({"name": "lbfgs", "lr": 0.1}, "train.optimizer.name: unknown 'lbfgs'"),
        ({"name": "sgd", "lr": 0.1, "momentun": 0.9}, "train.optimizer of sgd: unknown 'momentun'; did you mean 'mom"),
        ({"name": "sgd", "lr": 0.1, "nesterov": True}, "train.optimizer: sgd refuses it: ValueError: Nesterov"),
        ({"name": "muon", "lr": 0.1}, "train.optimizer: muon refuses it: ValueError"),
    ],
)
def test_a_wrong_optimiser_is_refused_with_what_is_valid(table: dict[str, Any], message: str) -> None:
    settings = TrainConfig.model_validate({"optimizer": table}).optimizer
    with pytest.raises(InputError, match=re.escape(message)):
        make_optimizer(model(), settings)


@pytest.mark.parametrize(
    ("table", "total", "shares"),
    [
        ({"name": "constant", "warmup": 4}, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"name": "cosine"}, 4, [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        ({"name": "cosine", "warmup": 2, "floor": 0.2}, 4, [0.5, 1, 1, 0.6, 0.2, 0.2]),
        ({"name": "step", "every": 2, "factor": 0.5}, 6, [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_shares_of_the_rate_follow_the_schedule(table: dict[str, Any], total: int, shares: list[float]) -> None:
    schedule = ScheduleConfig(**table)
    assert [schedule.share(i, total) for i in range(len(shares))] == pytest.approx(shares, abs=1e-12)


def test_a_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD(model().parameters(), lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.03)
    for step in range(7):
        assert 0.3 * ScheduleConfig(name="cosine", floor=0.1).share(step, 7) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_steps_take_the_rates_of_their_schedule() -> None:
    net = model()
    optimizer = scheduled(make_optimizer(net, Sgd(name="sgd", lr=0.4)), ScheduleConfig(name="constant", warmup=4), 4)
    moves = []
    for _ in range(5):
        before = net[1].weight.detach().clone()
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moves.append(float((before - net[1].weight).detach().mean()))
    assert moves == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4], abs=1e-6)


def test_corrections_move_parameters_outside_of_momentum_and_weight_decay() -> None:
    """Two steps with gradient 1, momentum 0.5, decay 0.1 and the correction 3; the second with half the rate."""
    line = nn.Linear(1, 1, bias=False)
    nn.init.constant_(line.weight, 2.0)
    settings = Sgd(name="sgd", lr=0.1, momentum=0.5, weight_decay=0.1)
    optimizer = corrected_steps(make_optimizer(line, settings), {line.weight: torch.tensor([[3.0]])})
    w, velocity = 2.0, 0.0
    for lr in (0.1, 0.05):
        optimizer.param_groups[0]["lr"] = lr
        line.weight.grad = torch.ones(1, 1)
        optimizer.step()
        velocity = 0.5 * velocity + 1 + 0.1 * w
        w = w - lr * velocity - lr * 3
        assert line.weight.item() == pytest.approx(w, rel=1e-6)
    optimizer.zero_grad()
    assert line.weight.grad is None

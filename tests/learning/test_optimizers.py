"""Optimisers are those that the config names."""

from __future__ import annotations

import pytest
import torch
from helpers.linear import model

from fedkd.config import Adam, Sgd
from fedkd.learning.optimizers import make_optimizer


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

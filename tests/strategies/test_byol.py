"""BYOL: its target lags and stays on its node."""

from __future__ import annotations

import copy

import torch
from helpers import Make
from helpers.self_supervised import ALONE, started


def test_byols_target_lags_and_stays_on_its_node(tiny: Make) -> None:
    client, encoder, _ = started(tiny, ALONE["byol"])
    start = copy.deepcopy(client.networks["target"].state_dict())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    client.after_step()(client.networks)
    for name, parameter in client.networks["target"].named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.1)
    client.end(encoder)
    client.begin(encoder)
    torch.testing.assert_close(client.networks["target"].projector[0].weight, start["projector.0.weight"] + 0.1)
    assert not torch.equal(encoder.projector[0].weight, client.networks["target"].projector[0].weight)

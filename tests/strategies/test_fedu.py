"""FedU: which predictor a node goes on with."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import Make
from helpers.self_supervised import ALONE, started


@pytest.mark.parametrize(("moved", "own"), [(0.05, False), (5.0, True)])
def test_fedu_keeps_its_predictor_where_the_encoder_moved_far(tiny: Make, moved: float, own: bool) -> None:
    client, encoder, _ = started(tiny, ALONE["fedu"])
    with torch.no_grad():
        encoder.predictors["online"][0].weight.fill_(7.0)
        for weight in (p for p in encoder.backbone.parameters() if p.dim() == 4):
            weight[0, 0, 0, 0] += moved  # each convolution by a norm of `moved`; the mean is compared with 0.2
    client.end(encoder)
    fresh = copy.deepcopy(encoder)
    with torch.no_grad():
        fresh.predictors["online"][0].weight.fill_(1.0)
    client.begin(fresh)
    assert float(fresh.predictors["online"][0].weight[0, 0].detach()) == (7.0 if own else 1.0)

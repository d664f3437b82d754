"""The fusion of knowledge: what holds for any weights of neighbours."""

from __future__ import annotations

import math
from unittest.mock import Mock

import pytest
import torch
from helpers.fusion import soft, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.methods.knowledge_fusion import effective_neighbours, fuse, log_weights
from fedkd.streams import torch_stream


@given(seed=st.integers(0, 10**6), beta=st.floats(0, 30))
@settings(deadline=None, max_examples=30)
def test_the_invariants_of_the_fusion(seed: int, beta: float) -> None:
    q = soft(seed)
    weights = weights_of(q, beta)
    fused = fuse(weights, q)
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(fused.sum(-1), torch.ones(5, 12), atol=1e-6, rtol=0)
    order = torch.randperm(5, generator=torch_stream(seed, 0, 0, "p"))
    torch.testing.assert_close(weights_of(q[order], beta), weights[order][:, order])
    torch.testing.assert_close(fuse(weights_of(q[order], beta), q[order]), fused[order])
    samples = torch.randperm(12, generator=torch_stream(seed, 0, 0, "s"))
    torch.testing.assert_close(weights_of(q[:, samples], beta), weights)
    torch.testing.assert_close(weights_of(torch.cat([q, q], 1), beta), weights)
    doubled = weights_of(q, 2 * beta)
    odds = (weights[0, 1] / weights[0, 2]).log()
    torch.testing.assert_close((doubled[0, 1] / doubled[0, 2]).log(), 2 * odds)


def test_the_limits_of_beta() -> None:
    q = soft(1)
    torch.testing.assert_close(weights_of(q, 0.0), torch.full((5, 5), 0.2, dtype=torch.float64))
    torch.testing.assert_close(fuse(weights_of(q, 0.0), q)[3], q.mean(0).float())
    torch.testing.assert_close(weights_of(q, 1e5), torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(fuse(weights_of(q, 1e5), q), q.float())
    torch.testing.assert_close(effective_neighbours(weights_of(q, 0.0)), torch.full((5,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(effective_neighbours(torch.eye(5)), torch.ones(5, dtype=torch.float64))


def test_what_is_logged_of_the_weights() -> None:
    federation = Mock()
    log_weights(federation, [3, 5], torch.tensor([[0.75, 0.25], [1 / 3, 2 / 3]], dtype=torch.float64))
    logged = dict(call.args for call in federation.log.call_args_list)
    assert logged["nodes"] == [3, 5]
    assert logged["weights"] == [[0.75, 0.25], [0.333333, 0.666667]]  # six decimals
    assert logged["self_weight"] == pytest.approx((0.75 + 2 / 3) / 2, rel=1e-12)
    entropies = [-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), math.log(3) - 2 / 3 * math.log(2)]
    assert logged["effective_neighbours"] == pytest.approx(sum(map(math.exp, entropies)) / 2, rel=1e-12)

"""KT-pFL: the update of its coefficients, and that they last."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Make, lines, server_state
from helpers.formulas import normal, softmax

from fedkd.runs.run import run
from fedkd.strategies.ktpfl import update_coefficients


def test_coefficients_follow_the_published_update() -> None:
    """The values that the authors' code gives on these outputs: the own coefficient drifts up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        q = torch.softmax(torch.randn(4, 6, 5) * 2, -1)
    once = update_coefficients(torch.full((4, 4), 0.25), q, 0.7)
    twice = update_coefficients(once, q, 0.7)
    assert once[0, 0].item() == pytest.approx(0.2757, abs=5e-5)
    assert twice[0, 0].item() == pytest.approx(0.4134, abs=5e-5)
    torch.testing.assert_close(twice.sum(1), torch.ones(4, dtype=torch.float64))


def test_the_coefficients_step_by_its_closed_form() -> None:
    q, c, rho = torch.softmax(normal(3, 4, 5), -1), torch.softmax(normal(3, 3, seed=1), 1), 0.7
    found = update_coefficients(c, q, rho)
    for n in range(3):
        rest = q[n] - sum(c[n, m] * q[m] for m in range(3))
        gradient = [-2 * float((rest * q[m]).mean()) + 2 * rho / 3 * (float(c[n, m]) - 1 / 3) for m in range(3)]
        size, step = sum(map(abs, gradient)) / 3, 1.0
        for _ in range(5):
            if size > 0.01:
                size, step = size / 5, step / 5
            if size < 0.01:
                size, step = size * 5, step * 5
        right = softmax([5 * (float(c[n, m]) - step * gradient[m]) for m in range(3)])
        assert found[n].tolist() == pytest.approx(right, rel=1e-9)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(update_coefficients(c[order][:, order], q[order], rho), found[order][:, order])
    kl_rows = update_coefficients(c, q, rho, "kl")
    torch.testing.assert_close(kl_rows.sum(1), torch.ones(3, dtype=torch.float64))
    assert not torch.allclose(kl_rows, found)


def test_coefficients_last_from_round_to_round_and_keep_their_sum(tiny: Make, tmp_path: Path) -> None:
    changes = {"strategy": {"name": "ktpfl"}, "data.public": {"size": 40}, "rounds": 3}
    run(tiny(changes), tmp_path / "all")
    kept = server_state(tmp_path / "all")["coefficients"]
    logged = [np.array(line["log"]["weights"]) for line in lines(tmp_path / "all")[1:]]
    np.testing.assert_allclose(kept, logged[-1], atol=1e-6)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(logged))
    run(tiny({**changes, "cohort": 3}), tmp_path / "some")
    kept = server_state(tmp_path / "some")["coefficients"]
    torch.testing.assert_close(kept.sum(1), torch.ones(6, dtype=torch.float64))
    assert (kept != 1 / 6).any()

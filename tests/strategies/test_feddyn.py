"""FedDyn: whole rounds by the paper's formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import Make
from helpers.hand import Hand, close, setting

from fedkd.runs.run import run


@pytest.mark.parametrize("official", [False, True])
def test_three_rounds_of_feddyn_are_the_papers_formulas(tiny: Make, tmp_path: Path, official: bool) -> None:
    """By the paper's own variables: lambda_k = grad L_k, h; not by the sums of moves that our code keeps."""
    config = setting(tiny, {"name": "feddyn", "alpha": 0.3, "official_quirks": official})
    run(config, tmp_path / "run")
    hand = Hand(config)
    w, nodes = hand.start(), range(6)
    sizes = [len(hand.data.train_of(k).labels) for k in nodes]
    alphas = [0.3 / (n * 6 / sum(sizes) if official else 1.0) for n in sizes]
    slopes = [{name: np.zeros_like(v) for name, v in w.items()} for _ in nodes]
    moves = {name: np.zeros_like(v) for name, v in w.items()}  # sum over all clients and rounds of theta_k - w
    for number in (1, 2, 3):
        cohort, models = hand.cohort(number, tmp_path / "run"), []
        for k in cohort:
            a, slope = alphas[k], slopes[k]
            theta, _ = hand.train(number, k, w, lambda n, g, v, a=a, s=slope, w=w: g - s[n] + a * (v - w[n]))
            slopes[k] = {n: slope[n] - a * (theta[n] - w[n]) for n in w}
            models.append(theta)
        moves = {n: moves[n] + sum(theta[n] - w[n] for theta in models) for n in w}
        w = {n: sum(theta[n] for theta in models) / len(models) + moves[n] / 6 for n in w}
    close(tmp_path / "run", w)

"""FD: each node is taught by the others."""

from __future__ import annotations

import torch
from helpers.formulas import normal

from fedkd.methods.class_means import mean_over_nodes
from fedkd.strategies.fd import leave_one_out


def test_each_node_is_taught_by_the_others_and_a_missing_label_counts_for_nothing() -> None:
    """Public frameworks send the plain mean, or average in the zeros of a node without the label."""
    means = {n: normal(3, 3, seed=n) for n in range(3)}
    present = {0: torch.tensor([1, 1, 0]), 1: torch.tensor([1, 0, 0]), 2: torch.tensor([1, 1, 1])}
    found = leave_one_out(means, present)
    torch.testing.assert_close(found[0][0][0], ((means[1][0] + means[2][0]) / 2).float())
    torch.testing.assert_close(found[1][0][1], ((means[0][1] + means[2][1]) / 2).float())
    torch.testing.assert_close(found[0][0][1], means[2][1].float())
    assert found[2][1].tolist() == [True, True, False]  # nobody else has label 2
    assert found[0][1].tolist() == [True, True, True]
    everyone, exists = mean_over_nodes(means, present)
    torch.testing.assert_close(everyone[1], ((means[0][1] + means[2][1]) / 2).float())
    torch.testing.assert_close(everyone[2], means[2][2].float())
    assert exists.all()

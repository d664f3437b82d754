"""FD: clients exchange a table of the mean logits of each label, and need no public data.

Jeong, Oh, Kim, Park, Bennis, Kim: Communication-Efficient On-Device Machine Learning: Federated Distillation and
Augmentation under Non-IID Private Data, 2018, arXiv:1811.11479, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedkd import Client, LabelLogits, LabelLogitsClient, Round, expected_means


def leave_one_out(means: Mapping[int, Tensor], present: Mapping[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return for each node the mean of the other nodes' rows, C x C, over those that have the label, and a mask of the
    labels that have such a row, C.

    (sum_j z_jc - z_kc) / (K_c - 1), where K_c nodes have label c. A node that lacks the label gets the mean of all K_c.
    """
    rows = {n: means[n].double() * present[n].double()[:, None] for n in means}
    total = torch.stack(list(rows.values())).sum(0)
    holders = torch.stack([present[n].double() for n in means]).sum(0)
    found = {}
    for node in means:
        others = holders - present[node].double()
        found[node] = (((total - rows[node]) / others.clamp(min=1)[:, None]).float(), others > 0)
    return found


@dataclass(kw_only=True)
class FD(LabelLogits):
    """FD (Jeong et al., 2018, Algorithm 1): each node learns from the mean table of the other nodes.

    gamma: 1 here, as in public frameworks; the paper's value was not found. The distance is the cross-entropy with the
    softmax of the table's row. A node that was not in the last cohort learns from the mean of the whole last cohort.
    """

    client: ClassVar[type[Client]] = LabelLogitsClient

    def run_round(self, federation: Round) -> None:
        """Send each node the mean table of the others, collect the new tables."""
        classes = len(federation.environment.data.classes)
        means, present = {}, {}
        replies = federation.ask("fit", self.teachings(federation), expect=expected_means("logits", classes, classes))
        for node, reply in replies:
            means[node], present[node] = reply.logits["means"], reply.statistics["present"].bool()
        outsider = {**means, -1: torch.zeros(classes, classes)}  # -1: for a node outside the cohort
        nobody = {**present, -1: torch.zeros(classes, dtype=torch.bool)}
        self.tables = leave_one_out(outsider, nobody)

"""Which nodes have the newest version of large arrays that the server shares, so that each gets them once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.round import Round
from ..errors import RunError
from ..messages.merging import weighted_mean
from ..messages.payload import Expected, Payload


class Holders:
    """The nodes that hold it, as far as the server knows: those whose reply to a request that carried it was good."""

    def __init__(self, nodes: Sequence[int] = ()) -> None:
        self.nodes = set(nodes)

    def ask(self, federation: Round, action: str, plain: Payload, full: Payload, expect: Expected) -> Payload:
        """Send each node of the cohort `plain` where it holds it, `full`, with it, else; return their weighted mean.

        A node that fails may have lost it, and gets it in its next round; at once where too few replies are good, as
        after a restart of all sites. Raises RunError where that does not help.
        """
        down = {node: plain if node in self.nodes else full for node in federation.cohort}
        try:
            merged = federation.ask(action, down, expect=expect, merge=weighted_mean)
        except RunError:
            lost = [node for node in self._failed(federation, action) if down[node] is plain]
            if not lost:
                raise
            merged = federation.ask(action, dict.fromkeys(lost, full), expect=expect, merge=weighted_mean)
            self.nodes -= set(federation.cohort)  # who else holds it was not found out
            return merged
        self.nodes = (self.nodes | set(federation.cohort)) - self._failed(federation, action)
        return merged

    @staticmethod
    def _failed(federation: Round, action: str) -> set[int]:
        return {failure["node"] for failure in federation.record.failures if failure["action"] == action}

    def forget(self) -> None:
        """Let nobody hold it: there is a newer one."""
        self.nodes = set()

    def tensor(self) -> Tensor:
        """Return the nodes as a tensor, for the server's state; ids may take all of 64 bits."""
        return torch.from_numpy(np.array(sorted(self.nodes), np.uint64).view(np.int64))

    @classmethod
    def of(cls, nodes: Tensor) -> Holders:
        """Return the holders in a tensor, as `tensor` returned it."""
        return cls(nodes.numpy().view(np.uint64).tolist())

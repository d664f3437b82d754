"""Which nodes hold the newest of something large that the server shares, so that it travels to each of them once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .payload import Payload
from .strategy import Round


class Holders:
    """The nodes that hold it, as far as the server knows: those whose reply to a request that carried it was good."""

    def __init__(self, nodes: Sequence[int] = ()) -> None:
        self.nodes = set(nodes)

    def address(self, cohort: Sequence[int], plain: Payload, full: Payload) -> dict[int, Payload]:
        """Return each node's payload: `plain` for those that hold it, `full`, with it, for the others."""
        return {node: plain if node in self.nodes else full for node in cohort}

    def note(self, federation: Round, action: str) -> None:
        """Take the round's replies to the request `action` into account; a node that failed may have lost it."""
        failed = {failure["node"] for failure in federation.record.failures if failure["action"] == action}
        self.nodes = (self.nodes | set(federation.cohort)) - failed

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

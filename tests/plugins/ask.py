"""Strategies that try out the contract: streams, state, payloads of their own for each node, unread replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from fedkd import Client, Payload, Round, Strategy


class Counting(Client):
    def count(self, request: Payload) -> Payload:
        """Count the requests in the node's state; answer with what was sent, and with draws from the streams."""
        before = self.recall("count")
        count = before["n"] + 1 if before else torch.tensor(1)
        self.keep("count", {"n": count})
        dropped = nn.functional.dropout(torch.ones(8))  # torch's default stream
        drawn = torch.randn(4, generator=self.stream("draws"))
        return Payload(
            statistics={"dropped": dropped, "drawn": drawn},
            numbers={"count": int(count), "sent": request.numbers.get("sent", -1)},
        )


@dataclass(kw_only=True)
class Count(Strategy):
    client: ClassVar[type[Client]] = Counting
    unread: bool = False

    def run_round(self, federation: Round) -> None:
        if self.unread:
            first = federation.ask("count")
            federation.ask("count")  # nobody reads these
            counts = [(node, reply.numbers["count"]) for node, reply in first]
        else:
            one_each = {node: Payload(numbers={"sent": 10 * node}) for node in reversed(federation.cohort)}
            counts = []
            for node, reply in federation.ask("count", one_each):
                counts.append((node, reply.numbers["count"]))
                federation.log(f"sent-{node}", reply.numbers["sent"])
                federation.log(f"draws-{node}", [reply.statistics[k].tolist() for k in ("drawn", "dropped")])
        federation.log("counts", counts)
        federation.log("server", torch.randn(2).tolist())

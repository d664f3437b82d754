"""A strategy whose clients do everything wrong in round 1, each in its own way; node 0 is good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedkd import Client, Payload
from fedkd.core.client import GlobalModelClient
from fedkd.strategies.fedavg import FedAvg

WAYS = ("good", "raises", "nan", "shape", "missing", "huge")


class Misbehaving(GlobalModelClient):
    def fit(self, request: Payload) -> Payload:
        reply = super().fit(request)
        first = next(iter(reply.weights))
        way = WAYS[self.node] if self.round == 1 else "good"
        if way == "raises":
            self.keep("spoilt", {"x": torch.ones(1)})
            raise ValueError("the disk is full")
        if way == "nan":
            reply.weights[first] = torch.full_like(reply.weights[first], float("nan"))
        if way == "shape":
            reply.weights[first] = torch.ones(3)
        if way == "missing":
            del reply.weights[first]
        if way == "huge":
            reply.weights[first] = torch.ones(10**6)
        return reply


@dataclass(kw_only=True)
class Misbehave(FedAvg):
    client: ClassVar[type[Client]] = Misbehaving

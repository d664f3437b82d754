"""A strategy whose clients leave in round 1 in ways that are no ordinary error; node 0 is good."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from fedkd import Client, Payload
from fedkd.core.client import GlobalModelClient
from fedkd.strategies.fedavg import FedAvg


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Leaving(GlobalModelClient):
    def fit(self, request: Payload) -> Payload:
        if self.round == 1:
            if self.node == 1:
                sys.exit(3)
            if self.node == 2:
                raise KeyboardInterrupt
            if self.node == 3:
                raise GeneratorExit
            if self.node == 4:
                raise ValueError("x" * 2**20)
            if self.node == 5:
                raise Unprintable
        return super().fit(request)


@dataclass(kw_only=True)
class Leave(FedAvg):
    client: ClassVar[type[Client]] = Leaving

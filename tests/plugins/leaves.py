"""KnFu and FedAvg where a node leaves in round 2: a federation in which a SuperNode is killed there, simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedkd import Client
from fedkd.strategies.fedavg import FedAvg
from fedkd.strategies.knfu import KnFu


def leaving(client: type[Client], leaver: int, rounds: tuple[int, ...]) -> type[Client]:
    class Leaving(client):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if self.node == leaver and self.round in rounds:
                raise ConnectionError("gone")

    return Leaving


@dataclass(kw_only=True)
class LeavingKnFu(KnFu):
    def client_class(self) -> type[Client]:
        return leaving(super().client_class(), 2, (2, 3))


@dataclass(kw_only=True)
class LeavingFedAvg(FedAvg):
    def client_class(self) -> type[Client]:
        return leaving(super().client_class(), 1, (2, 3))


@dataclass(kw_only=True)
class AloneFedAvg(FedAvg):
    """FedAvg without the replies of node 2."""

    def client_class(self) -> type[Client]:
        return leaving(super().client_class(), 2, tuple(range(1, 1000)))

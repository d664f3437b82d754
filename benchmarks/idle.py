"""FedAvg whose clients send back what they got: the cost of an engine alone."""

from __future__ import annotations

from typing import ClassVar

from fedkd import Client, GlobalModelClient, Payload
from fedkd.strategies.fedavg import FedAvg


class IdleClient(GlobalModelClient):
    """Returns the weights that it was sent."""

    def fit(self, request: Payload) -> Payload:
        """Do nothing."""
        return Payload(weights=request.weights, numbers={"examples": 1, "loss": 0.0})


class Idle(FedAvg):
    """FedAvg without training."""

    client: ClassVar[type[Client]] = IdleClient

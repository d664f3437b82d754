"""Local: every node trains its own model, and nothing is exchanged. The lower bound for personal models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedkd import ANY_KIND, ANY_TASK, LOSS, Client, Expected, Kind, Payload, Round, Strategy, Task


class LocalClient(Client):
    """Trains the node's personal model on the node's images."""

    def fit(self, request: Payload) -> Payload:
        """Train for one round and keep the model; return the loss."""
        loss = self.train_locally()
        self.keep_model()
        return Payload(numbers={"loss": loss})


@dataclass(kw_only=True)
class Local(Strategy):
    """No exchange: the nodes of the cohort train their personal models. Models may differ."""

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = LocalClient

    def run_round(self, federation: Round) -> None:
        """Ask the cohort to train."""
        replies = list(federation.ask("fit", expect=Expected(numbers={"loss": LOSS})))
        federation.log("train_loss", sum(reply.payload.numbers["loss"] for reply in replies) / max(len(replies), 1))

"""FedAvg whose node 3 kills its own process in round 2, as long as a file says so; each death takes a line off it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from fedkd import Client, Payload
from fedkd.core.client import GlobalModelClient
from fedkd.strategies.fedavg import FedAvg


class Mortal(GlobalModelClient):
    def fit(self, request: Payload) -> Payload:
        reply = super().fit(request)
        deaths = Path(cast(Die, self.strategy).deaths)
        if self.node == 3 and self.round == 2 and deaths.exists() and (left := deaths.read_text().splitlines()):
            deaths.write_text("\n".join(left[1:]))
            os.kill(os.getpid(), signal.SIGKILL)
        return reply


@dataclass(kw_only=True)
class Die(FedAvg):
    client: ClassVar[type[Client]] = Mortal
    deaths: str

"""FedAvg where clients wait until something ends them: node 1 in round 2, node 2 in round 3.

A client that waits writes the number of its process into `$WAITING/<node>`.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from fedkd import Client, Payload
from fedkd.strategies.fedavg import FedAvg


@dataclass(kw_only=True)
class WaitingFedAvg(FedAvg):
    def client_class(self) -> type[Client]:
        class Waiting(super().client_class()):  # type: ignore[misc]
            def fit(self, request: Payload) -> Payload:
                if self.node + 1 == self.round and self.node > 0:
                    path = Path(os.environ["WAITING"], str(self.node))
                    path.with_suffix(".part").write_text(f"{os.getpid()}\n")
                    path.with_suffix(".part").rename(path)
                    while True:
                        threading.Event().wait(60)
                return super().fit(request)

        return Waiting

"""SCAFFOLD whose clients, in round 3, end the machine they are on: the raylet of a worker that is not on the head node.

Once, as long as the file `marker` is there, which holds the head node's id.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import ray

from fedkd import Client, Payload
from fedkd.strategies.scaffold import Scaffold, ScaffoldClient


class Lost(ScaffoldClient):
    def fit(self, request: Payload) -> Payload:
        reply = super().fit(request)
        marker = Path(cast(LoseNode, self.strategy).marker)
        if self.round == 3 and marker.exists() and ray.get_runtime_context().get_node_id() != marker.read_text():
            marker.unlink()
            os.kill(os.getppid(), signal.SIGKILL)  # the raylet of this machine
            os.kill(os.getpid(), signal.SIGKILL)
        return reply


@dataclass(kw_only=True)
class LoseNode(Scaffold):
    client: ClassVar[type[Client]] = Lost
    marker: str

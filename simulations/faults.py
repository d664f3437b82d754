"""Injected faults of a simulation: nodes drop out, are late or raise errors, and replies are damaged or lost.

Nodes that do fewer epochs are here for their events only: the client half does them (`Client.settings`).

Each fault depends on (seed, round, node), so that a run with faults is reproducible. The core's `evaluate` requests
have no faults, because they are not part of a method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedkd.config import Config
from fedkd.core.sampling import sample_epochs
from fedkd.messages.arrays import HeldArray
from fedkd.streams import numpy_stream

Damage = Literal["nan", "shape", "huge"]
DAMAGES: tuple[Damage, ...] = ("nan", "shape", "huge")


@dataclass(frozen=True)
class Fault:
    """The fault of one request. `delay`: simulated seconds; `damage`: the kind of damage of its reply."""

    kind: Literal["dropout", "straggler", "error", "corrupted", "lost"]
    delay: float = 0.0
    damage: Damage = "nan"

    def event(self, node: int, action: str) -> dict[str, Any]:
        """Return the fault as an event of metrics.jsonl."""
        more: dict[str, Any] = {}
        if self.kind == "straggler":
            more["seconds"] = round(self.delay, 3)
        if self.kind == "corrupted":
            more["damage"] = self.damage
        return {"node": node, "action": action, "event": f"injected: {self.kind}", **more}

    def failure(self, timeout: float | None) -> str | None:
        """Return the reason if there is no reply, otherwise None."""
        late = timeout is not None and (self.kind == "lost" or self.delay > timeout)
        if late:
            return f"no reply within {timeout:g} s (injected)"
        return {"dropout": "dropped out (injected)", "error": "InjectedError: a client error on purpose",
                "lost": "reply lost (injected)"}.get(self.kind)  # fmt: skip


def fault_of(config: Config, message: Message) -> Fault | None:
    """Return the fault of a request to a simulated node, if any. A node that drops out is absent for a whole round."""
    faults, node = config.faults, message.metadata.dst_node_id
    action = message.metadata.message_type.removeprefix("train.")
    number = int(message.metadata.group_id or 0)
    if action == "evaluate":
        return None
    if faults.dropout and numpy_stream(config.seed, number, node, "faults/dropout").random() < faults.dropout:
        return Fault("dropout")
    if not faults.error and not faults.lost and not faults.corrupted and not faults.straggler:
        return None
    rng = numpy_stream(config.seed, number, node, f"faults/{action}")
    error, lost, corrupted, straggler = rng.random(4)
    delay, damage = float(rng.exponential(faults.delay)), DAMAGES[int(rng.integers(len(DAMAGES)))]
    if error < faults.error:
        return Fault("error")
    if lost < faults.lost:
        return Fault("lost")
    if corrupted < faults.corrupted:
        return Fault("corrupted", damage=damage)
    return Fault("straggler", delay) if straggler < faults.straggler else None


def events_of(config: Config, message: Message) -> list[dict[str, Any]]:
    """Return the events of a request: its fault, if any, and the node's epochs if it works and does fewer of them."""
    node, action = message.metadata.dst_node_id, message.metadata.message_type.removeprefix("train.")
    fault = fault_of(config, message)
    found = [fault.event(node, action)] if fault is not None else []
    works = action != "evaluate" and (fault is None or fault.failure(config.timeout) is None)
    epochs = sample_epochs(config, int(message.metadata.group_id or 0), node)
    if works and epochs < config.train.epochs:
        found.append({"node": node, "action": action, "event": "injected: partial_work", "epochs": epochs})
    return found


def damaged(records: RecordDict, damage: Damage) -> RecordDict:
    """Return the records of a damaged reply: one array has a NaN, another shape, or a header that claims ten billion
    values. A reply without arrays gets a number that is not a number (NaN).
    """
    copies = RecordDict(dict(records))
    for key, record in records.items():
        if not isinstance(record, ArrayRecord) or not len(record):
            continue
        arrays = ArrayRecord()
        for place, (name, array) in enumerate(record.items()):
            arrays[name] = _damaged(array.numpy(), damage) if place == 0 else array
        copies[key] = arrays
        return copies
    copies["numbers"] = MetricRecord({**records.metric_records.get("numbers", MetricRecord()), "damaged": float("nan")})
    return copies


def _damaged(values: np.ndarray, damage: Damage) -> Array:
    if damage == "shape":
        return HeldArray(np.append(values.ravel(), values.ravel()[:1] if values.size else np.zeros(1, values.dtype)))
    if damage == "huge":
        whole = Array(np.zeros(1, values.dtype))
        claim = whole.data.replace(b"(1,), }" + b" " * 10, b"(10000000000,), }")
        return Array(whole.dtype, whole.shape, whole.stype, claim)
    broken = values.astype(np.float32 if not np.issubdtype(values.dtype, np.floating) else values.dtype)
    broken = np.append(broken.ravel(), np.nan) if not broken.size else broken
    broken.flat[0] = np.nan
    return HeldArray(np.ascontiguousarray(broken))

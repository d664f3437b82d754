"""Merges replies block by block, so that a sum of many models needs the memory of one, on any machine.

A block is `BLOCK` successive messages in the order of the cohort. It does not depend on the number of workers: the same
sums in the same order give the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict

from ..errors import PayloadError
from .arrival import Arrival, Door
from .payload import Payload

BLOCK = 5  # replies that are merged together
Merge = Callable[[Payload, Payload], Payload]  # merges the second into the first; may change only the first in place


def weighted_mean(total: Payload, reply: Payload) -> Payload:
    """Merge two payloads into their mean, weighted by the number `examples`; in place in `total`.

    It uses a running mean, m += (x - m) n_x / (n_m + n_x): the mean of equal arrays is exactly that array. Arrays of
    integers (counters of batch norm) stay integers: their changes are rounded. Raises PayloadError without `examples`.
    """
    if "examples" not in total.numbers or "examples" not in reply.numbers:
        raise PayloadError("a weighted mean needs the number 'examples' in each reply")
    examples = total.numbers["examples"] + reply.numbers["examples"]
    _move_towards(total, reply, reply.numbers["examples"] / examples if examples else 0.0)
    total.numbers["examples"] = examples
    return total


def mean_weighted_by(total: Payload, reply: Payload, weight: Callable[[int], float]) -> Payload:
    """Merge two payloads into their mean, weighted by a function of each reply's `examples`; in place in `total`.

    Use it as `partial(mean_weighted_by, weight=...)`, with a function that other processes can import. What it returns
    has the numbers `weight`, the sum of the replies' weights, and `replies`, how many they are.
    """
    own, other = (one.numbers.get("weight", weight(int(one.numbers["examples"]))) for one in (total, reply))
    replies = total.numbers.pop("replies", 1) + reply.numbers.get("replies", 1)
    total.numbers.pop("weight", None)
    _move_towards(total, reply, other / (own + other) if own + other else 0.0)
    total.numbers |= {"weight": own + other, "replies": replies}
    return total


def uniform_mean(total: Payload, reply: Payload) -> Payload:
    """Merge as `mean_weighted_by` does, with the same weight for each reply."""
    return mean_weighted_by(total, reply, _one)


def _one(examples: int) -> float:
    return 1.0


def _move_towards(total: Payload, reply: Payload, share: float) -> None:
    """Move all that `total` contains by a share of its distance to `reply`."""
    for kind, arrays in total.by_kind():
        others = getattr(reply, kind)
        floats = [name for name, tensor in arrays.items() if tensor.is_floating_point()]
        if floats:
            torch._foreach_lerp_([arrays[name] for name in floats], [others[name] for name in floats], share)
        for name, tensor in arrays.items():
            other = others[name]
            if not tensor.is_floating_point():
                change = other.long() - tensor.long()  # equal integers stay as they are, however large
                tensor.copy_(tensor.long() + (change.double() * share).round().long())
    for name, number in total.numbers.items():
        total.numbers[name] = number + (reply.numbers[name] - number) * share


@dataclass
class Block:
    """A merged block of replies: the merged payload (None if all failed), and an Arrival without payload for each."""

    merged: RecordDict | None
    arrivals: list[Arrival]


def merge_block(replies: Iterable[Message], merge: Merge, door: Door) -> Block:
    """Merge the good replies of one block, with one reply in memory at a time."""
    merged: Payload | None = None
    arrivals = []
    for reply in replies:
        # `weighted_mean` only reads the second payload; another merge may keep it
        arrival = door.let_in(reply, copy=merged is None or merge is not weighted_mean)
        arrivals.append(arrival)
        payload, arrival.payload = arrival.payload, None
        if payload is not None:
            merged = payload if merged is None else merge(merged, payload)
    return Block(None if merged is None else merged.to_records(copy=False), arrivals)


def blocks_of(messages: list[Message]) -> list[list[Message]]:
    """Return the messages in blocks."""
    return [messages[start : start + BLOCK] for start in range(0, len(messages), BLOCK)]

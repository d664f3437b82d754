"""The byte ledger: the bytes of sent records, by kind and direction."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from .arrays import HeldArray
from .payload import FLOWER_ARRAYS, OUTSIDE

Sizes = dict[str, dict[str, int]]  # "up" and "down": bytes by kind


def no_bytes() -> Sizes:
    """Return an empty ledger."""
    return {"up": {}, "down": {}}


def count_bytes(records: RecordDict) -> dict[str, int]:
    """Return the bytes of records when sent, by kind: serialised arrays, 8 for each number, strings, and their names.

    An array counts as Flower serialises it (npy: its data and a header of 128 bytes). The records that the core adds
    to the payload (the round, the metrics) are not counted.
    """
    sizes: dict[str, int] = {}
    for key, record in records.items():
        if key in OUTSIDE:
            continue
        if isinstance(record, ArrayRecord):
            kind = "weights" if key == FLOWER_ARRAYS else key
        else:
            kind = "numbers" if isinstance(record, MetricRecord) else "strings"
        sizes[kind] = sizes.get(kind, 0) + _record_bytes(record)
    return sizes


def bytes_outside(records: RecordDict) -> int:
    """Return the bytes of the records that `count_bytes` does not count."""
    return sum(_record_bytes(record) for key, record in records.items() if key in OUTSIDE)


def all_bytes(records: RecordDict) -> int:
    """Return the bytes of all records together, those that the core adds included."""
    return sum(map(_record_bytes, records.values()))


def _record_bytes(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    if isinstance(record, ArrayRecord):
        return sum(_text_bytes(name) + array_bytes(array) for name, array in record.items())
    return sum(_text_bytes(name) + _scalar_bytes(value) for name, value in record.items())


def array_bytes(array: Array) -> int:
    """Return the number of bytes of an array when Flower serialises it."""
    return array.size() if isinstance(array, HeldArray) else len(array.data)


def _scalar_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_scalar_bytes(item) for item in value)
    if isinstance(value, str):
        return _text_bytes(value)
    return len(value) if isinstance(value, bytes) else 8


def _text_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))  # a site can send what is no text


def count_sent(messages: list[Message], ledger: Sizes) -> None:
    """Add the bytes of messages to nodes to a ledger, in place. Shared content counts once for each node."""
    sizes: dict[int, dict[str, int]] = {}
    for message in messages:
        content = message.content
        if id(content) not in sizes:
            sizes[id(content)] = count_bytes(content)
        add_sizes(ledger["down"], sizes[id(content)])


def add_sizes(total: dict[str, int], sizes: dict[str, int]) -> None:
    """Add bytes by kind, in place."""
    for kind, size in sizes.items():
        total[kind] = total.get(kind, 0) + size

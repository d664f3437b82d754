"""The only module that uses Flower's private names; its test fails when Flower changes them.

Flower takes a message's sender from an identity of the process, which Flower's runtimes set, and its id from the
SuperLink. fedkd's engines have neither, so they set both here. On real sites, the core identifies a node by its number
in the federation.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ..errors import PayloadError

RUN_ID = 1  # a process simulates one run at a time
_MOST_OBJECTS = 50_000  # of a message: arrays, their pieces, records
_OVERHEAD = 10**6, 1000  # bytes of a message and of each object beside what `payload_limit` counts
_budget = threading.local()  # inside `at_most`: `bytes` that arrays may still have, and `seconds`


def be_the_server() -> None:
    """Set the identity that `Message(...)` needs in this process, as Flower's ServerApp runtime does."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def record_of(arrays: dict[str, Array]) -> ArrayRecord:
    """Return a record of these arrays. Flower's own way checks and notes each of them, which costs more than a copy."""
    record = ArrayRecord()
    record.__dict__["_data"] = arrays
    return record


def simulated_run() -> Run:
    """Return the description of the run that a simulated Grid reports."""
    return Run.create_empty(run_id=RUN_ID)


def give_ids(messages: Iterable[Message]) -> list[str]:
    """Give the messages of one exchange their ids, as the SuperLink would, and return the ids."""
    ids = []
    for number, message in enumerate(messages):
        ids.append(f"{message.metadata.group_id}/{message.metadata.message_type}/{number}")
        message.metadata.__dict__["_message_id"] = ids[-1]
    return ids


def node_context(node: int, clients: int, state: RecordDict) -> Context:
    """Return the context of a simulated node. Its id is the number of its partition."""
    config: dict[str, bool | float | int | str] = {"partition-id": node, "num-partitions": clients}
    return Context(run_id=RUN_ID, node_id=node, node_config=config, state=state, run_config={})


def without_content(message: Message) -> Message:
    """Return a message with the same metadata and no records."""
    return make_message(message.metadata, RecordDict())


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply that reports a node's failure."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def is_gone(reply: Message) -> bool:
    """Return whether the SuperLink has written this reply itself, because the SuperNode is not connected any more."""
    return reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def renumber(reply: Message, node: int) -> Message:
    """Replace the sender of a reply, a node's id in Flower, by its number in the federation; return the reply."""
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


@contextlib.contextmanager
def at_most(size: int, seconds: float) -> Iterator[None]:
    """Limit each message that this thread pulls from Flower's Grid, before Flower puts it together in memory.

    `size`: bytes of all its arrays together; pieces that an array names several times count each time. `seconds`: in
    which all its pieces must come. Inside, a message beyond that raises PayloadError, or is an error message.
    """
    _count_what_arrives()
    _budget.bytes, _budget.seconds = size, seconds
    try:
        yield
    finally:
        del _budget.bytes, _budget.seconds


@functools.cache
def _count_what_arrives() -> None:
    """Count, in Flower's own functions, what a message inside `at_most` brings; other messages pass as before."""
    from flwr.superlink.grid import http_grid  # imported here because it takes most of a second

    inflate, pull_objects = Array.inflate.__func__, http_grid.pull_objects  # type: ignore[attr-defined]

    def counting(cls: type[Array], object_content: bytes, children: dict[str, Any] | None = None) -> Array:
        if hasattr(_budget, "bytes"):
            ids = get_object_children_ids_from_object_content(object_content)
            pieces = json.loads(get_object_body(object_content, cls))["arraychunk_ids"]
            _budget.bytes -= sum(len((children or {})[ids[piece]].data) for piece in pieces)
            if _budget.bytes < 0:
                raise PayloadError("its arrays are larger than payload_limit")
        array: Array = inflate(cls, object_content, children)
        return array

    def pull(object_ids: list[str], pull_object_fn: Callable[[str], bytes], **more: Any) -> dict[str, bytes]:
        if not hasattr(_budget, "bytes"):
            return pull_objects(object_ids, pull_object_fn, **more)
        most, left = _budget.bytes, [_budget.bytes + _OVERHEAD[0] + _OVERHEAD[1] * len(object_ids)]
        if len(object_ids) > _MOST_OBJECTS + most // 10**6:  # large arrays come in pieces of 5 MB
            raise ObjectPullError("", f"the message has {len(object_ids)} objects")

        def one(object_id: str) -> bytes:
            content = pull_object_fn(object_id)
            left[0] -= len(content)
            if left[0] < 0:
                raise ObjectPullError(object_id, "the message is larger than payload_limit")
            return content

        return pull_objects(object_ids, one, **{**more, "max_time": _budget.seconds})

    Array.inflate = classmethod(counting)  # type: ignore[method-assign, assignment]
    http_grid.pull_objects = pull


def activations(grid: Grid) -> dict[int, str]:
    """Return the ids of the connected nodes, and the time of the last start of each."""
    return {node.node_id: node.last_activated_at for node in grid.get_nodes()}


def registered_names(grid: Grid) -> dict[int, str]:
    """Return the names under which the keys of connected nodes were registered, by id; none without keys."""
    return {node.node_id: node.name for node in grid.get_nodes() if getattr(node, "name", "")}


def has_stable_ids(grid: Grid) -> bool:
    """Return whether a SuperNode keeps its id after a restart: if keys are checked, for which Flower needs TLS."""
    return not getattr(grid, "_insecure", True)

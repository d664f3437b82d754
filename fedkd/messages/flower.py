"""The one module that touches what Flower does not make public; its test fails when Flower changes.

Flower gives a message its sender from a process-wide identity that its own runtimes set, and an id in its SuperLink.
An engine of ours has neither, so it sets both. On real sites, the core knows a node by its number in the federation.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1  # a process simulates one run at a time


def be_the_server() -> None:
    """Let `Message(...)` work in this process, as Flower's ServerApp runtime does."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def simulated_run() -> Run:
    """Return the description of the run that a simulated Grid reports."""
    return Run.create_empty(run_id=RUN_ID)


def give_ids(messages: Iterable[Message]) -> list[str]:
    """Number the messages within one exchange, as the SuperLink would, and return their ids."""
    ids = []
    for number, message in enumerate(messages):
        ids.append(f"{message.metadata.group_id}/{message.metadata.message_type}/{number}")
        message.metadata.__dict__["_message_id"] = ids[-1]
    return ids


def node_context(node: int, clients: int, state: RecordDict) -> Context:
    """Return the context of a simulated node. Its id is its partition's."""
    config: dict[str, bool | float | int | str] = {"partition-id": node, "num-partitions": clients}
    return Context(run_id=RUN_ID, node_id=node, node_config=config, state=state, run_config={})


def without_content(message: Message) -> Message:
    """Return a message with the same metadata and no records."""
    return make_message(message.metadata, RecordDict())


def error_reply(message: Message, reason: str) -> Message:
    """Return the reply that reports a node's failure."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def renumber(reply: Message, node: int) -> Message:
    """Let a reply come from a node's number in the federation, in place of its id in Flower; return it."""
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def activations(grid: Grid) -> dict[int, str]:
    """Return the ids of the nodes that are connected, and when each of them last was started."""
    return {node.node_id: node.last_activated_at for node in grid.get_nodes()}


def has_stable_ids(grid: Grid) -> bool:
    """Return whether a SuperNode keeps its id over restarts: where keys are checked, which takes TLS in Flower."""
    return not getattr(grid, "_insecure", True)

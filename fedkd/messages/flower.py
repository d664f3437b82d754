"""The only module that uses Flower's private names; its test fails when Flower changes them.

Flower takes a message's sender from an identity of the process, which Flower's runtimes set, and its id from the
SuperLink. fedkd's engines have neither, so they set both here. On real sites, the core identifies a node by its number
in the federation.
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
    """Set the identity that `Message(...)` needs in this process, as Flower's ServerApp runtime does."""
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


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


def renumber(reply: Message, node: int) -> Message:
    """Replace the sender of a reply, a node's id in Flower, by its number in the federation; return the reply."""
    reply.metadata.__dict__["_src_node_id"] = node
    return reply


def activations(grid: Grid) -> dict[int, str]:
    """Return the ids of the connected nodes, and the time of the last start of each."""
    return {node.node_id: node.last_activated_at for node in grid.get_nodes()}


def has_stable_ids(grid: Grid) -> bool:
    """Return whether a SuperNode keeps its id after a restart: if keys are checked, for which Flower needs TLS."""
    return not getattr(grid, "_insecure", True)

"""What we rely on of Flower that it does not promise. A failure here means that Flower has changed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_res_message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, Krum, Strategy
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_body,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid

from fedkd.errors import PayloadError
from fedkd.messages import flower


def test_the_version_is_one_that_this_was_tried_with() -> None:
    """A new minor version of Flower may change the private names: try these tests with it, then widen the range."""
    assert re.match(r"1\.4[12]\.", version("flwr"))


def test_a_process_can_be_the_server_and_number_its_messages() -> None:
    flower.be_the_server()
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (1, 1, 1)
    messages = [Message(RecordDict(), node, "train.fit", group_id="3") for node in (0, 7)]
    assert flower.give_ids(messages) == ["3/train.fit/0", "3/train.fit/1"]
    reply = Message(RecordDict({"x": ConfigRecord({"y": 1})}), reply_to=messages[1])
    assert reply.metadata.reply_to_message_id == "3/train.fit/1"
    assert (reply.metadata.src_node_id, reply.metadata.group_id) == (7, "3")


def test_error_replies_and_messages_without_content() -> None:
    flower.be_the_server()
    message = Message(RecordDict({"x": ConfigRecord({"y": 1})}), 4, "train.fit", group_id="3")
    error = flower.error_reply(message, "why")
    assert error.has_error()
    assert (error.error.reason, error.metadata.src_node_id) == ("why", 4)
    shell = flower.without_content(message)
    assert not shell.content
    assert shell.metadata is message.metadata


def test_the_superlinks_own_reply_for_a_supernode_that_is_gone_is_recognised() -> None:
    flower.be_the_server()
    message = Message(RecordDict(), 4, "train.fit", group_id="3")
    gone = create_message_error_unavailable_res_message(message.metadata, "node_unavail")
    late = create_message_error_unavailable_res_message(message.metadata, "msg_unavail")
    replies = (gone, late, flower.error_reply(message, "why"), Message(RecordDict(), reply_to=message))
    assert [flower.is_gone(reply) for reply in replies] == [True, False, False, False]


def test_a_simulated_run_and_context() -> None:
    context = flower.node_context(3, 10, RecordDict())
    assert (flower.simulated_run().run_id, context.run_id, context.node_id) == (1, 1, 3)
    assert context.node_config == {"partition-id": 3, "num-partitions": 10}


def test_flowers_arrays_are_npy_of_the_version_that_we_read() -> None:
    data = Array(np.ones((2, 3), np.float32)).data
    assert data.startswith(b"\x93NUMPY\x01\x00")
    assert len(data) == 128 + 24


def test_the_interfaces_that_we_implement_and_call() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive",
    }  # fmt: skip
    assert Strategy.__abstractmethods__ == {
        "configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary",
    }  # fmt: skip
    for stock in (FedAdam(), Krum()):
        assert (stock.fraction_train, stock.min_train_nodes, stock.weighted_by_key) == (1.0, 2, "num-examples")
    record = ArrayRecord({"w": Array(np.ones(1))})
    assert RecordDict({"arrays": record}).array_records["arrays"] is record


def contents_of(records: RecordDict, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, bytes]:
    """Return records as they are sent, with the description of each array changed."""
    contents: dict[str, bytes] = {}
    for id, part in get_all_nested_objects(records).items():
        content = part.deflate()
        if isinstance(part, Array):
            body = json.dumps(change(json.loads(get_object_body(content, Array)))).encode()
            content = add_header_to_object_body(body, part)
        contents[id] = content
    return contents


def test_an_array_that_names_its_pieces_again_and_again_is_not_put_together() -> None:
    array = Array("float32", (1,), "numpy.ndarray", b"x" * 10_000)
    records = RecordDict({"weights": ArrayRecord({"a": array, "b": Array("float32", (1,), "numpy.ndarray", b"y")})})
    bomb = contents_of(records, lambda about: {**about, "arraychunk_ids": about["arraychunk_ids"] * 5})
    with flower.at_most(50_005, 1.0):
        inflated = inflate_object_from_contents(records.object_id, dict(bomb))
    assert len(inflated["weights"]["a"].data) == 50_000  # type: ignore[index]
    with flower.at_most(50_004, 1.0), pytest.raises(PayloadError, match="larger than payload_limit"):
        inflate_object_from_contents(records.object_id, dict(bomb))
    inflate_object_from_contents(records.object_id, bomb)  # outside there is no limit


def test_a_message_whose_pieces_are_too_many_or_too_large_is_not_fetched() -> None:
    fetched: list[str] = []

    def fetch(id: str) -> bytes:
        fetched.append(id)
        return b"x" * 600_000

    assert len(http_grid.pull_objects(["a", "b"], fetch)) == 2  # outside there is no limit
    fetched.clear()
    with flower.at_most(10**6, 1.0):
        assert len(http_grid.pull_objects(["a", "b", "c"], fetch)) == 3
        with pytest.raises(ObjectPullError, match="larger than payload_limit"):
            http_grid.pull_objects(list("abcd"), fetch)
        fetched.clear()
        with pytest.raises(ObjectPullError, match="60000 objects"):
            http_grid.pull_objects([str(n) for n in range(60_000)], fetch)
    assert fetched == []


@pytest.mark.parametrize("count", [50_001, 50_002])
def test_a_message_may_have_50_000_objects_and_one_for_each_million_bytes(count: int) -> None:
    with (
        flower.at_most(10**6, 9.0),
        pytest.raises(ObjectPullError, match="larger than" if count == 50_001 else "50002 objects"),
    ):
        http_grid.pull_objects([str(n) for n in range(count)], lambda id: b"x" * 10**9)


@pytest.mark.parametrize(("size", "fits"), [(10**6 + 1002, True), (10**6 + 1003, False)])
def test_objects_have_room_beside_what_counts(size: int, fits: bool) -> None:
    with flower.at_most(2, 9.0), contextlib.nullcontext() if fits else pytest.raises(ObjectPullError, match="larger"):
        assert len(http_grid.pull_objects(["a"], lambda id: b"x" * size)) == 1


def test_a_message_whose_pieces_never_come_is_given_up() -> None:
    def fetch(id: str) -> bytes:
        raise ObjectUnavailableError(id)

    with flower.at_most(10**6, 0.0), pytest.raises(ObjectPullError, match="timeout or retry limit"):
        http_grid.pull_objects(["a"], fetch)


def test_names_of_registered_keys_are_known() -> None:
    assert {"name", "node_id", "last_activated_at"} <= {field.name for field in NodeInfo.DESCRIPTOR.fields}
    nodes = [NodeInfo(node_id=5, name="site-1"), NodeInfo(node_id=6)]
    grid = cast(Grid, SimpleNamespace(get_nodes=lambda: nodes))
    assert flower.registered_names(grid) == {5: "site-1"}


def test_ids_last_where_flower_checks_keys() -> None:
    grids = [SimpleNamespace(), SimpleNamespace(_insecure=True), SimpleNamespace(_insecure=False)]
    assert [flower.has_stable_ids(cast(Grid, grid)) for grid in grids] == [False, False, True]


def test_the_last_starts_of_nodes_are_known() -> None:
    nodes = [NodeInfo(node_id=5, last_activated_at="monday"), NodeInfo(node_id=6)]
    assert flower.activations(cast(Grid, SimpleNamespace(get_nodes=lambda: nodes))) == {5: "monday", 6: ""}

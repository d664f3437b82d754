"""What we rely on of Flower that it does not promise. A failure here means that Flower has changed."""

from __future__ import annotations

import flwr
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, Krum, Strategy
from flwr.supercore.task_identity import TaskIdentity

from fedkd.messages import flower


def test_the_version_is_the_one_that_this_was_written_for() -> None:
    import importlib.metadata

    assert importlib.metadata.version("flwr").startswith("1.41.")
    assert flwr.__name__ == "flwr"


def test_a_process_can_be_the_server_and_number_its_messages() -> None:
    flower.be_the_server()
    assert (TaskIdentity.run_id, TaskIdentity.node_id) == (flower.RUN_ID, 1)
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


def test_a_simulated_run_and_context() -> None:
    assert flower.simulated_run().run_id == flower.RUN_ID
    context = flower.node_context(3, 10, RecordDict())
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

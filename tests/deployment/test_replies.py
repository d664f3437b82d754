"""Nothing that a site sends is trusted: counts, metrics, names and texts are bounded or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord
from helpers import Make
from helpers.federations import IDS, failures, metrics_of, partitioned, start

from fedkd import RunError
from fedkd.messages.arrays import array_record
from fedkd.runs.run import run


def test_a_site_cannot_claim_more_images_than_it_told_of(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == IDS[3] and message.metadata.message_type == "train.fit":
            reply.content["numbers"] = MetricRecord({"examples": 25.0, "loss": 1.0})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 3 fit: bad reply: number 'examples' is 25.0, valid is 1 to 24, whole"]


def test_a_label_histogram_cannot_count_more_images_than_there_are(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": "fedftg"}})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.dst_node_id == IDS[3] and message.metadata.message_type == "train.label_counts":
            counts = torch.tensor([3] * 9 + [-2], dtype=torch.int32) if negative else torch.full((10,), 3).int()
            reply.content["statistics"] = array_record({"label_counts": counts})
        return reply

    grid.tampered = tampered
    for negative, reason in ((False, "counts 30 images, but the node has 24"), (True, "has values outside 0.0 to")):
        start(config, grid, tmp_path / f"run-{negative}")
        (failure,) = failures(tmp_path / f"run-{negative}")
        assert failure.startswith("1 3 label_counts: bad reply: statistics 'label_counts'")
        assert reason in failure
        grid = partitioned(config)
        grid.tampered = tampered


def test_a_site_cannot_speak_over_the_servers_metrics(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    reports: dict[int, dict[str, float]] = {
        IDS[0]: {"global/accuracy": 1.0}, IDS[1]: {"personal/loss": math.inf}, IDS[2]: {"\x1b[2J/x": 1.0},
        IDS[3]: {f"x/{n}": 1.0 for n in range(101)}, IDS[4]: {"personal/accuracy": 1.5},
    }  # fmt: skip
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id in reports:
            reply.content["report"] = MetricRecord(dict(reports[message.metadata.dst_node_id]))
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == [
        "1 0 fit: bad reply: metric 'global/accuracy' may only be reported by the server",
        "1 1 fit: bad reply: metric 'personal/loss' is inf",
        "1 2 fit: bad reply: report has the name '[2J/x': 200 plain characters at most",
        "1 3 fit: bad reply: 101 metrics; a reply may have 100 at most",
        "1 4 fit: bad reply: metric 'personal/accuracy' is 1.5, out of range",
    ]


def test_what_a_stock_strategy_gets_is_what_was_checked(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": "flwr.serverapp.strategy:FedAdam"}})
    run(config, tmp_path / "simulated")
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train":
            return reply
        if message.metadata.dst_node_id == IDS[1]:
            reply.content["weights"] = reply.content.pop("arrays")
        if message.metadata.dst_node_id == IDS[2]:
            arrays = reply.content.pop("arrays")
            reply.content["arrays"] = type(arrays)(dict(reversed(arrays.items())))
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "simulated")
    grid = partitioned(config)

    def lists(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == IDS[0]:
            reply.content["metrics"] = MetricRecord({"a": [1.0]})
        return reply

    grid.tampered = lists
    start(config, grid, tmp_path / "lists")
    assert failures(tmp_path / "lists") == ["1 0 train: bad reply: metrics 'a' is neither a number nor a text"]


def test_fednovas_steps_are_bounded_by_the_images(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1, "strategy": {"name": "fednova"}})
    run(config, tmp_path / "simulated")
    grid = partitioned(config)
    start(config, grid, tmp_path / "sites")
    assert metrics_of(tmp_path / "sites") == metrics_of(tmp_path / "simulated")
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id == IDS[1]:
            reply.content["numbers"] = MetricRecord({"examples": 24.0, "loss": 1.0, "normaliser": 1e6})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 1 fit: bad reply: number 'normaliser' is 1000000.0, valid is 1 to 3"]


def test_names_of_three_megabytes_are_not_repeated(tiny: Make, tmp_path: Path) -> None:
    config = tiny({"rounds": 1})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id == IDS[1]:
            reply.content["numbers"] = MetricRecord({"examples": 24.0, "loss": 1.0, "x" * 3 * 10**6: 1.0})
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    (failure,) = failures(tmp_path / "run")
    assert len(failure) < 450


@pytest.mark.parametrize(
    ("about", "failing"),
    [
        ({"damaged": ["x"]}, 0),
        ({"keeps": 7.5}, 0),
        ({"request": "000001-000001"}, 6),
        ({"node": 1}, 5),
        ({"node": 1.5, "request": [1]}, 6),
    ],
)
def test_what_a_site_says_of_itself_may_be_anything_but_another_request_or_site(
    tiny: Make, tmp_path: Path, about: dict[str, Any], failing: int
) -> None:
    config = tiny({"rounds": 1, "evaluate.every": 2})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit":
            reply.content["site"] = ConfigRecord({**reply.content["site"], **about})  # type: ignore[dict-item]
        return reply

    grid.tampered = tampered
    reason = "bad reply: it is not the reply of this site to 'fit' of round 1"
    if failing == 6:
        with pytest.raises(RunError, match=f"0 of 6 replies are good, min_replies is 1. node 0: {reason}"):
            start(config, grid, tmp_path / "run")
    else:
        start(config, grid, tmp_path / "run")
        assert failures(tmp_path / "run") == [f"1 {node} fit: {reason}" for node in (0, 2, 3, 4, 5)[:failing]]


@pytest.mark.parametrize("about", [None, MetricRecord({"x": 1})])
def test_a_reply_that_does_not_say_what_it_answers_is_refused(tiny: Make, tmp_path: Path, about: Any) -> None:
    config = tiny({"rounds": 1, "evaluate.every": 2})
    grid = partitioned(config)

    def tampered(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "train.fit" and message.metadata.dst_node_id == IDS[3]:
            del reply.content["site"]
            if about is not None:
                reply.content["site"] = about
        return reply

    grid.tampered = tampered
    start(config, grid, tmp_path / "run")
    assert failures(tmp_path / "run") == ["1 3 fit: bad reply: it is not the reply of this site to 'fit' of round 1"]

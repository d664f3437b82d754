"""Replies of sites, as bytes on the wire: what Flower puts together, then the door. No exception leaves it."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import strategies as st

from fedkd import ArraySpec, Expected
from fedkd.config import Limits
from fedkd.deployment.introduction import JOIN, introduction_of
from fedkd.deployment.sites import _Pull
from fedkd.errors import PayloadError
from fedkd.messages.arrival import AskedMetrics, arrive
from fedkd.messages.flower import be_the_server
from fedkd.messages.ledger import all_bytes
from fedkd.messages.payload import IMAGES, LOSS
from fuzz.mutations import damaged, with_odd_values

NODE = 3
LIMITS = Limits(10**5, {"images": 1000}, 1e6)
ASKED = AskedMetrics("evaluate", frozenset({NODE}), frozenset({"personal/accuracy"}), frozenset({"latest"}))
EXPECTED = Expected(
    weights={"w": ArraySpec((2, 3)), "bn.num_batches_tracked": ArraySpec((), torch.int64)},
    logits={"z": ArraySpec((None, 3), probabilities=True)},
    statistics={"counts": ArraySpec((3,), torch.int32, counts=True)},
    numbers={"examples": IMAGES, "loss": LOSS},
    strings=("name",),
    most_images=100,
)


@functools.cache
def wire(action: str) -> tuple[str, dict[str, bytes], dict[str, str]]:
    """Return a good reply as it is sent: the id of its whole, its parts by id, and what each of them is."""
    be_the_server()
    if action == JOIN:
        numbers = dict.fromkeys(("partition", "images", "test_images", "channels", "height", "width"), 1.0)
        strings = {"name": "site-1", "model": "", "version": "1", "classes": '["a", "b"]', "states": ""}
        records = RecordDict({"numbers": MetricRecord({**numbers}), "strings": ConfigRecord({**strings})})
    else:
        arrays = {"w": Array(np.ones((2, 3), np.float32)), "bn.num_batches_tracked": Array(np.array(4))}
        records = RecordDict(
            {
                "weights": ArrayRecord(arrays),
                "logits": ArrayRecord({"z": Array(np.full((4, 3), 1 / 3, np.float32))}),
                "statistics": ArrayRecord({"counts": Array(np.array([1, 2, 3], np.int32))}),
                "numbers": MetricRecord({"examples": 6, "loss": 0.5}),
                "strings": ConfigRecord({"name": "x"}),
                "report": MetricRecord({"personal/accuracy": 0.5}),
                "site": ConfigRecord({"keeps": True}),
            }
        )
    parts = get_all_nested_objects(records)
    return records.object_id, {id: part.deflate() for id, part in parts.items()}, {
        id: type(part).__name__ for id, part in parts.items()
    }  # fmt: skip


def _with_body(content: bytes, body: bytes) -> bytes:
    """Return an object with another body, and a head that says its length."""
    head = content.partition(b"\x00")[0].rpartition(b" ")[0]
    return head + b" " + str(len(body)).encode() + b"\x00" + body


@st.composite
def _on_the_wire(draw: st.DrawFn) -> tuple[str, dict[str, bytes]]:
    action = draw(st.sampled_from(["fit", "evaluate", JOIN]))
    _, contents, kinds = wire(action)
    changed = dict(contents)
    for _ in range(draw(st.integers(1, 3))):
        id = draw(st.sampled_from(sorted(contents)))
        body = changed[id].partition(b"\x00")[2]
        if kinds[id] in ("Array", "ArrayRecord", "RecordDict") and draw(st.booleans()):
            try:
                table = json.loads(body)
            except (ValueError, RecursionError):  # an earlier change has nested it deeply
                continue
            new = json.dumps(draw(with_odd_values(table))).encode()
        else:
            new = draw(damaged(body))
        changed[id] = _with_body(changed[id], new) if draw(st.integers(0, 9)) else draw(damaged(changed[id]))
    return action, changed


NAMES = st.sampled_from(["w", "z", "counts", "examples", "loss", "name", "personal/accuracy", "global/loss"])
NUMBERS = st.floats() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0.5, 6, -1e-6, 3.4e38, 2**31])


@st.composite
def _arrays(draw: st.DrawFn) -> Array:
    if draw(st.booleans()):
        return Array("float32", (1,), "numpy.ndarray", draw(damaged(Array(np.ones((2, 3), np.float32)).data)))
    code = draw(st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "?", "c8", "u2", "S3"]))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(code).itemsize
    values = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), code) if size else np.empty(0, code)
    return Array(np.asarray(values.reshape(shape), order=draw(st.sampled_from(["C", "F"]))))


@st.composite
def _records(draw: st.DrawFn) -> tuple[str, RecordDict]:
    """Draw records that Flower takes, of any kind under any name."""
    made = RecordDict()
    kinds = ["weights", "logits", "statistics", "images", "arrays", "numbers", "metrics", "strings", "report", "round"]
    for kind in draw(st.lists(st.sampled_from(kinds) | st.text(max_size=5), min_size=1, max_size=4, unique=True)):
        names = draw(st.lists(NAMES | st.text(max_size=5), max_size=4, unique=True))
        usual = ConfigRecord if kind == "strings" else MetricRecord if kind in kinds[5:] else ArrayRecord
        record = draw(st.sampled_from([usual, usual, usual, ArrayRecord, MetricRecord, ConfigRecord]))
        values: st.SearchStrategy[Any] = _arrays()
        if record is MetricRecord:
            values = NUMBERS | st.lists(st.floats(), max_size=3)
        elif record is ConfigRecord:
            values = st.text(max_size=20) | st.binary(max_size=5) | st.booleans() | NUMBERS
        made[kind] = record({name: draw(values) for name in names})
    return draw(st.sampled_from(["fit", "evaluate"])), made


INPUTS = _on_the_wire() | _records() | _records()


def target(drawn: tuple[str, dict[str, bytes] | RecordDict]) -> None:
    action, contents = drawn
    be_the_server()
    question = Message(RecordDict(), NODE, JOIN if action == JOIN else f"train.{action}")

    def pull_messages(ids: Any) -> list[Message]:
        if isinstance(contents, RecordDict):
            records = RecordDict(dict(contents))
        else:
            records = cast(RecordDict, inflate_object_from_contents(wire(action)[0], dict(contents)))
        return [Message(records, reply_to=question)]

    pull = _Pull(cast(Grid, SimpleNamespace(pull_messages=pull_messages)), "1", LIMITS.total)
    pull.run()
    if pull.reply is None:
        return
    if action == JOIN:
        try:
            introduction_of(pull.reply.content, LIMITS)
        except PayloadError:
            return
    pull.reply.content.pop("site", None)
    arrival = arrive(pull.reply, EXPECTED, LIMITS, asked=ASKED._replace(action=action))
    assert (arrival.payload is None) != (arrival.failure is None)
    if arrival.failure is not None:
        assert arrival.metrics == {}
        assert len(arrival.failure) <= 400
        assert arrival.failure.isprintable()
    else:
        assert all_bytes(pull.reply.content) <= LIMITS.total

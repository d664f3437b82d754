"""Nothing that is wrong, or that was not asked for, gets past the check on arrival."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedkd import ArraySpec, Expected, Payload, expected_model, like
from fedkd.config import Limits
from fedkd.errors import PayloadError
from fedkd.messages.arrival import AskedMetrics, Door, arrive, receive
from fedkd.messages.flower import be_the_server
from fedkd.messages.payload import IMAGES

LIMIT = Limits(10**6, {"images": 1000})


WEIGHTS = {"w": torch.ones(2, 3), "n": torch.tensor(4)}


EXPECTED = Expected(weights=like(WEIGHTS), numbers={"examples": (1, math.inf)})


def good() -> Payload:
    return Payload(weights={k: v.clone() for k, v in WEIGHTS.items()}, numbers={"examples": 5})


def test_what_was_asked_for_is_received() -> None:
    assert torch.equal(receive(good().to_records(), EXPECTED, LIMIT).weights["w"], WEIGHTS["w"])


def _change(**changes: object) -> Payload:
    payload = good()
    for key, value in changes.items():
        if value is None:
            del payload.weights[key]
        else:
            payload.weights[key] = value  # type: ignore[assignment]
    return payload


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (_change(w=torch.full((2, 3), math.nan)), "weights 'w' has values that are not finite"),
        (_change(w=torch.full((2, 3), math.inf)), "weights 'w' has values that are not finite"),
        (_change(w=torch.ones(3, 2)), r"weights 'w' has shape \(3, 2\), expected was \(2, 3\)"),
        (_change(w=torch.ones(2, 3).double()), "weights 'w' has dtype torch.float64, expected was torch.float32"),
        (_change(w=None), "weights without 'w'"),
        (_change(extra=torch.ones(1)), "weights has 'extra', which was not asked for"),
        (Payload(weights=good().weights), "numbers without 'examples'"),
        (Payload(weights=good().weights, numbers={"examples": 0}), "number 'examples' is 0, valid is 1 to inf"),
        (Payload(weights=good().weights, numbers={"examples": math.nan}), "number 'examples' is nan"),
        (Payload(weights=good().weights, numbers={"examples": 1}, logits={"z": torch.ones(1)}), "logits has 'z'"),
    ],
)
def test_what_was_not_asked_for_is_refused_by_name(payload: Payload, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        receive(payload.to_records(), EXPECTED, LIMIT)


def test_a_spec_may_leave_a_length_open() -> None:
    expected = Expected(logits={"z": ArraySpec((None, 10))})
    assert receive(Payload(logits={"z": torch.ones(7, 10)}).to_records(), expected, LIMIT)
    with pytest.raises(PayloadError, match=r"shape \(7, 9\), expected was \(None, 10\)"):
        receive(Payload(logits={"z": torch.ones(7, 9)}).to_records(), expected, LIMIT)


def test_a_payload_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadError, match="payload of 4000129 bytes is over the limit of 1000000"):
        receive(Payload(weights={"w": torch.ones(10**6)}).to_records(), None, LIMIT)


def test_every_limit_is_told_by_its_kind() -> None:
    payload = Payload(images={"x": torch.zeros(1, 1, 40, 40, dtype=torch.uint8)}, logits={"z": torch.zeros(10**4)})
    with pytest.raises(PayloadError, match="images of 1729 bytes are over the limit of 1000"):
        receive(payload.to_records(), None, LIMIT)
    assert receive(Payload(logits={"z": torch.zeros(10**4)}).to_records(), None, LIMIT)


def test_counts_of_images_are_bounded_by_what_the_node_has() -> None:
    expected = Expected(
        statistics={"counts": ArraySpec((2,), torch.int32, counts=True)}, numbers={"examples": IMAGES}, most_images=10
    )

    def reported(counts: list[int], examples: float) -> Payload:
        return Payload(statistics={"counts": torch.tensor(counts, dtype=torch.int32)}, numbers={"examples": examples})

    assert receive(reported([4, 6], 10).to_records(), expected, LIMIT)
    for counts, examples, message in (
        ([5, 6], 10, "statistics 'counts' counts 11 images, but the node has 10"),
        ([-1, 6], 10, "statistics 'counts' has values outside 0.0 to"),
        ([5, 5], 11, "number 'examples' is 11, valid is 1 to 10, whole"),
        ([5, 5], 0, "number 'examples' is 0, valid is 1 to 10, whole"),
    ):
        with pytest.raises(PayloadError, match=message):
            receive(reported(counts, examples).to_records(), expected, LIMIT)


QUESTION = 3  # the node that is asked in the tests below


def reply_with(**records: Any) -> Message:
    be_the_server()
    return Message(RecordDict(records), reply_to=Message(RecordDict(), QUESTION, "train.fit"))


BIG = Array("float32", (10**6,), "numpy.ndarray", b"x" * 4_000_000)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({"report": ArrayRecord({"w": BIG})}, "a ArrayRecord of kind 'report'"),
        ({"round": MetricRecord({"a": 1.0})}, "a MetricRecord of kind 'round'"),
        ({"secrets": ConfigRecord({"a": "b"})}, "a ConfigRecord of kind 'secrets'"),
        ({"weights": MetricRecord({"a": 1.0})}, "a MetricRecord of kind 'weights'"),
        ({"weights": ArrayRecord({"w": BIG})}, "payload of 4000001 bytes is over the limit of 1000000"),
        ({"strings": ConfigRecord({"a": "b" * 10**6})}, "payload of 1000001 bytes is over the limit"),
        ({"report": MetricRecord({f"x/{n}": 1.0 for n in range(101)})}, "101 metrics"),
        ({"numbers": MetricRecord({str(n): 1.0 for n in range(10_001)})}, "more than 10000 arrays, numbers and texts"),
        ({"numbers": MetricRecord({"a": [1.0] * 1000})}, "numbers 'a' is neither a number nor a text"),
        ({"strings": ConfigRecord({"a": b"\0"})}, "strings 'a' is neither a number nor a text"),
        ({"numbers": MetricRecord({"\ud800": 1.0})}, "numbers has the name '': 200 plain characters at most"),
        ({"numbers": MetricRecord({"a\x1b[2J": 1.0})}, "numbers has the name 'a [2J'"),
        ({"numbers": MetricRecord({"a" * 201: 1.0})}, "200 plain characters at most"),
        ({"numbers": MetricRecord({"a\u202eb": 1.0})}, "numbers has the name 'a b'"),
        ({"numbers": MetricRecord({"a": 1.7e308})}, "number 'a' is 1.7e+308"),
        ({"numbers": MetricRecord({"a": -math.inf})}, "number 'a' is -inf"),
        ({"weights": ArrayRecord({"w": Array("x", (1,), "numpy.ndarray", b"")})}, "array 'w' is damaged"),
    ],
)  # fmt: skip
def test_whatever_a_node_sends_is_its_failure_on_one_bounded_line(records: dict[str, Any], reason: str) -> None:
    arrival = arrive(reply_with(**records), None, LIMIT)
    assert arrival.payload is None
    assert arrival.metrics == {}
    assert arrival.failure is not None
    assert arrival.failure.startswith("bad reply: ")
    assert reason in arrival.failure
    assert len(arrival.failure) <= 400
    assert arrival.failure.isprintable()


def test_an_exception_of_any_type_is_the_nodes_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError(), RecursionError("too deep"), KeyError("x"), OverflowError("int too large")):
        monkeypatch.setattr("fedkd.messages.arrival.from_records", Mock(side_effect=error))
        failure = arrive(reply_with(numbers=MetricRecord({"a": 1.0})), None, LIMIT).failure
        assert failure is not None
        assert failure.startswith(f"bad reply: it cannot be read: {type(error).__name__}")


def one_array(name: str, tensor: torch.Tensor, kind: str = "weights") -> RecordDict:
    return Payload(**{kind: {name: tensor}}).to_records()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["weights", "logits", "generator", "statistics"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_beyond_the_limit_are_refused(kind: str, dtype: torch.dtype) -> None:
    limits = LIMIT._replace(value=1000.0)
    edge = torch.tensor([-1000.0, 1000.0], dtype=dtype)
    assert receive(one_array("a", edge, kind), None, limits)
    for wrong in (1001.0, -1001.0, math.nan, math.inf, -math.inf):
        with pytest.raises(PayloadError, match=f"{kind} 'a' has values that are not finite, or beyond 1000"):
            receive(one_array("a", torch.tensor([0.0, wrong], dtype=dtype), kind), None, limits)


def test_the_buffers_of_batch_norm_have_ranges() -> None:
    assert receive(one_array("bn.running_var", torch.tensor([0.0, 1e6])), None, LIMIT)
    assert receive(one_array("bn.num_batches_tracked", torch.tensor(2**53)), None, LIMIT)
    assert receive(one_array("bn.running_var", torch.zeros(0)), None, LIMIT)
    wide = LIMIT._replace(value=1e300)
    assert receive(one_array("bn.running_var", torch.tensor([3.4e38], dtype=torch.float64)), None, wide)
    with pytest.raises(PayloadError, match="values outside 0 to 3.4e\\+38"):
        receive(one_array("bn.running_var", torch.tensor([3.5e38], dtype=torch.float64)), None, wide)
    for name, value in (
        ("bn.running_var", torch.tensor([1.0, -1e-6])),
        ("part/bn.running_var", torch.tensor([-1e6])),
        ("bn.num_batches_tracked", torch.tensor(-1)),
        ("bn.num_batches_tracked", torch.tensor(2**53 + 1)),
        ("bn.num_batches_tracked", torch.tensor(2**63 - 1)),
    ):
        with pytest.raises(PayloadError, match=f"weights '{name}' has values outside 0 to"):
            receive(one_array(name, value), None, LIMIT)


def test_what_counts_images_is_whole() -> None:
    counts = ArraySpec((2,), torch.float32, counts=True)
    expected = Expected(statistics={"counts": counts}, numbers={"examples": IMAGES})

    def reported(count: float, examples: float) -> RecordDict:
        return Payload(statistics={"counts": torch.tensor([1.0, count])}, numbers={"examples": examples}).to_records()

    assert receive(reported(2.0, 3.0), expected, LIMIT)
    with pytest.raises(PayloadError, match="statistics 'counts' counts parts of images"):
        receive(reported(2.5, 3.0), expected, LIMIT)
    with pytest.raises(PayloadError, match=r"number 'examples' is 2.5, valid is 1 to 2.14748365e\+09, whole"):
        receive(reported(2.0, 2.5), expected, LIMIT)


@pytest.mark.parametrize("loss", [-1.0, -1e30, 3.5e38])
def test_a_loss_has_a_range(loss: float) -> None:
    expected = expected_model(WEIGHTS)
    for good_one in (0.0, -1e-6, 3e38):
        records = Payload(weights=dict(WEIGHTS), numbers={"examples": 5, "loss": good_one}).to_records()
        assert receive(records, expected, LIMIT)
    with pytest.raises(PayloadError, match="number 'loss' is"):
        receive(Payload(weights=dict(WEIGHTS), numbers={"examples": 5, "loss": loss}).to_records(), expected, LIMIT)


NAMES = (
    "personal_after_fit/accuracy",
    "personal/accuracy",
    "personal/loss",
    "personal/other",
    "drift/feature_angle",
    "own/gain",
    "latest/accuracy",
)
FIT = AskedMetrics("fit", frozenset({QUESTION}), frozenset(NAMES), frozenset({"latest"}))
EVALUATE = FIT._replace(action="evaluate")


@pytest.mark.parametrize(
    ("asked", "metric", "value", "reason"),
    [
        (None, "personal_after_fit/accuracy", 0.5, "was not asked for in this round"),
        (FIT._replace(nodes=frozenset({4})), "personal_after_fit/accuracy", 0.5, "was not asked for in this round"),
        (FIT, "personal/accuracy", 0.5, "was not asked for by 'fit'"),
        (FIT, "best/accuracy", 0.5, "was not asked for by 'fit'"),
        (EVALUATE, "xyz/loss", 0.5, "was not asked for by 'evaluate'"),
        (EVALUATE, "personal_after_fit/accuracy", 0.5, "was not asked for by 'evaluate'"),
        (EVALUATE, "latest/accuracy", 0.5, "may only be reported by the server"),
        (FIT, "global/loss", 0.5, "may only be reported by the server"),
        (FIT, "semi_10/accuracy", 0.5, "may only be reported by the server"),
        (EVALUATE, "personal/loss", -1e-9, "out of range"),
        (EVALUATE, "personal/loss", 3.5e38, "out of range"),
        (EVALUATE, "personal/accuracy", 1.0000001, "out of range"),
        (EVALUATE, "personal/accuracy", -0.1, "out of range"),
        (EVALUATE, "drift/feature_angle", 181.0, "out of range"),
        (EVALUATE, "personal/other", -3.5e38, "out of range"),
        (EVALUATE, "personal/loss", math.nan, "is nan"),
    ],
)
def test_metrics_are_what_was_asked_for(asked: AskedMetrics | None, metric: str, value: float, reason: str) -> None:
    arrival = arrive(reply_with(report=MetricRecord({metric: value})), None, LIMIT, asked=asked)
    assert arrival.failure is not None
    assert f"metric '{metric}' " in arrival.failure
    assert reason in arrival.failure
    assert arrival.metrics == {}


def test_what_was_asked_for_is_kept() -> None:
    metrics = {"personal/accuracy": 1.0, "personal/loss": 0.0, "drift/feature_angle": 180.0, "own/gain": -3.0}
    assert arrive(reply_with(report=MetricRecord(dict(metrics))), None, LIMIT, asked=EVALUATE).metrics == metrics
    after = {"personal_after_fit/accuracy": 0.0}
    assert arrive(reply_with(report=MetricRecord(dict(after))), None, LIMIT, asked=FIT).metrics == after


def reply_that_fails(reason: str) -> Message:
    be_the_server()
    return Message(Error(7, reason), reply_to=Message(RecordDict(), QUESTION, "train.fit"))


def test_an_error_reply_is_told_by_its_reason_or_its_code() -> None:
    assert arrive(reply_that_fails("no disk"), None, LIMIT).failure == "no disk"
    assert arrive(reply_that_fails(""), None, LIMIT).failure == "error 7"
    assert arrive(reply_that_fails("x" * 1000), None, LIMIT).failure == "x" * 1000
    assert arrive(reply_that_fails("x" * 1001), None, LIMIT).failure == "x" * 997 + "..."


def accepts(records: RecordDict, expected: Expected | None = None, limits: Limits = LIMIT) -> bool:
    try:
        receive(records, expected, limits)
    except PayloadError:
        return False
    return True


def test_sizes_are_accepted_up_to_the_limit() -> None:
    records = Payload(images={"x": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, numbers={"a": 1.0}).to_records()
    images, total = 16 + 128 + 1, 16 + 128 + 1 + 8 + 1
    assert accepts(records, limits=Limits(total, {"images": images}))
    assert not accepts(records, limits=Limits(total - 1, {"images": images}))
    assert not accepts(records, limits=Limits(total, {"images": images - 1}))
    assert accepts(Payload(numbers={"a": 1.0}).to_records(), limits=Limits(total, {"images": 0}))


def test_names_and_numbers_are_accepted_up_to_the_limit() -> None:
    assert accepts(RecordDict({"numbers": MetricRecord({"a" * 200: 3.4e38, "b": -3.4e38})}))
    assert not accepts(RecordDict({"numbers": MetricRecord({"b": math.nextafter(3.4e38, math.inf)})}))
    assert not accepts(RecordDict({"numbers": MetricRecord({"": 1.0})}))
    assert accepts(RecordDict({"numbers": MetricRecord({f"{n}": 1.0 for n in range(10_000)})}))
    assert not accepts(RecordDict({"numbers": MetricRecord({f"{n}": 1.0 for n in range(10_001)})}))
    most = {f"personal/x{n}": 1.0 for n in range(100)}
    asked = EVALUATE._replace(names=frozenset(most))
    assert arrive(reply_with(report=MetricRecord(dict(most))), None, LIMIT, asked=asked).metrics == most


def test_rows_of_probabilities_sum_to_1_but_for_rounding() -> None:
    expected = Expected(logits={"z": ArraySpec((1, 2), torch.float64, probabilities=True)})
    for more, fits in ((0.0, True), (9e-4, True), (-9e-4, True), (1.1e-3, False), (-1.1e-3, False)):
        row = torch.tensor([[0.5, 0.5 + more]], dtype=torch.float64)
        assert accepts(one_array("z", row, "logits"), expected) == fits
    for first, fits in ((0.0, True), (-1e-4, False)):
        row = torch.tensor([[first, 1.0]], dtype=torch.float64)
        assert accepts(one_array("z", row, "logits"), expected) == fits
    above = torch.tensor([[1.0005, 0.0]], dtype=torch.float64)
    with pytest.raises(PayloadError, match="logits 'z' has values outside 0.0 to 1.0"):
        receive(one_array("z", above, "logits"), expected, LIMIT)


def test_a_row_whose_sum_is_at_the_tolerance_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkd.messages.arrival._ROUNDING", 0.25)  # in float64, 1.25 - 1 is exactly this
    expected = Expected(logits={"z": ArraySpec((1, 2), torch.float64, probabilities=True)})
    for second, fits in ((0.75, True), (0.75 + 2**-40, False), (0.25, True), (0.25 - 2**-40, False)):
        row = torch.tensor([[0.5, second]], dtype=torch.float64)
        assert accepts(one_array("z", row, "logits"), expected) == fits


def test_ranges_contain_both_ends_and_nothing_beyond() -> None:
    spec = {"c": ArraySpec((None,), torch.int64, between=(2, 5))}
    for values, fits in (([2, 5], True), ([], True), ([1], False), ([6], False)):
        records = one_array("c", torch.tensor(values, dtype=torch.int64), "indices")
        assert accepts(records, Expected(indices=spec)) == fits
    for number, fits in ((2.0, True), (5.0, True), (2.5, True), (1.9, False), (5.1, False)):
        records = Payload(numbers={"a": number}).to_records()
        assert accepts(records, Expected(numbers={"a": (2.0, 5.0)})) == fits
    for count, fits in ((2**31 - 1, True), (2**31, False)):
        records = Payload(numbers={"examples": float(count)}).to_records()
        assert accepts(records, Expected(numbers={"examples": IMAGES})) == fits
        records = one_array("c", torch.tensor([count], dtype=torch.int64), "statistics")
        assert accepts(records, Expected(statistics={"c": ArraySpec((1,), torch.int64, counts=True)})) == fits


def test_what_a_reason_says_of_names_is_short() -> None:
    cut = "k" * 77 + "..."
    with pytest.raises(PayloadError, match=f"^a ConfigRecord of kind '{cut}', valid are weights"):
        receive(RecordDict({"k" * 81: ConfigRecord({})}), None, LIMIT)
    with pytest.raises(PayloadError, match=f"^numbers has the name '{cut}': 200 plain characters at most$"):
        receive(RecordDict({"numbers": MetricRecord({"k" * 201: 1.0})}), None, LIMIT)
    several = Payload(weights={f"w{n}": torch.zeros(1) for n in range(6)})
    one = Payload(weights={"x": torch.zeros(1)})
    listed = r"'w0', 'w1', 'w2', 'w3', 'w4', \.\.\. \(6\)"
    with pytest.raises(PayloadError, match=f"^weights without {listed}$"):
        receive(one.to_records(), Expected(weights=like(several.weights)), LIMIT)
    several.weights |= one.weights
    with pytest.raises(PayloadError, match=f"^weights has {listed}, which was not asked for$"):
        receive(several.to_records(), Expected(weights=like(one.weights)), LIMIT)


def test_what_is_let_in_is_a_copy_unless_memory_may_be_shared() -> None:
    def passed_on(copy: bool | None) -> list[Payload | None]:
        asked = {} if copy is None else {"copy": copy}
        door = Door(None, LIMIT)
        return [
            receive(message.content, None, LIMIT, **asked),
            arrive(message, None, LIMIT, **asked).payload,
            door.let_in(message, **asked).payload,
        ]

    be_the_server()
    asked = Message(RecordDict(), QUESTION, "train.fit")
    message = Message(Payload(weights={"w": torch.zeros(2)}).to_records(), reply_to=asked)
    place = message.content.array_records["weights"]["w"].numpy().ctypes.data
    for copy, shared in ((None, False), (True, False), (False, True)):
        places = [payload.weights["w"].data_ptr() for payload in passed_on(copy) if payload is not None]
        assert [found == place for found in places] == [shared] * 3

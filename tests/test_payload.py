"""Payloads cross Flower's records unchanged, and nothing that is wrong gets past the check on arrival."""

import contextlib
import math
import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedkd import ArraySpec, Expected, Payload, like, weighted_mean
from fedkd.config import Limits
from fedkd.messages.arrays import HeldArray, PayloadError, is_finite, owned, tensors_of
from fedkd.messages.arrival import receive
from fedkd.messages.ledger import count_bytes
from fedkd.messages.payload import IMAGES, from_records

LIMIT = Limits(10**6, {"images": 1000})
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(st.dictionaries(st.sampled_from("abc"), ARRAYS), st.dictionaries(st.text(), st.text()))
@settings(deadline=None)
def test_a_payload_crosses_unchanged(arrays: dict, strings: dict) -> None:
    payload = Payload(
        logits={name: torch.from_numpy(array) for name, array in arrays.items()},
        numbers={"examples": 3},
        strings=strings,
    )
    back = from_records(payload.to_records())
    assert back.numbers == payload.numbers
    assert back.strings == strings
    assert set(back.logits) == set(arrays)
    for name, tensor in back.logits.items():
        assert tensor.dtype == payload.logits[name].dtype
        assert tensor.numpy().tobytes() == arrays[name].tobytes()


def test_columns_first_arrays_of_foreign_clients_are_read_right() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    records = RecordDict({"logits": ArrayRecord({"z": Array(array)})})
    assert torch.equal(from_records(records).logits["z"], torch.arange(6.0).double().reshape(2, 3))


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
        (_change(w=torch.ones(3, 2)), r"weights 'w' has shape \(3, 2\), asked for was \(2, 3\)"),
        (_change(w=torch.ones(2, 3).double()), "weights 'w' has dtype torch.float64, asked for was torch.float32"),
        (_change(w=None), "weights without 'w'"),
        (_change(extra=torch.ones(1)), "weights with 'extra', which nobody asked for"),
        (Payload(weights=good().weights), "numbers without 'examples'"),
        (Payload(weights=good().weights, numbers={"examples": 0}), "number 'examples' is 0, valid is 1 to inf"),
        (Payload(weights=good().weights, numbers={"examples": math.nan}), "number 'examples' is nan"),
        (Payload(weights=good().weights, numbers={"examples": 1}, logits={"z": torch.ones(1)}), "logits with 'z'"),
    ],
)
def test_what_was_not_asked_for_is_refused_by_name(payload: Payload, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        receive(payload.to_records(), EXPECTED, LIMIT)


def test_a_spec_may_leave_a_length_open() -> None:
    expected = Expected(logits={"z": ArraySpec((None, 10))})
    assert receive(Payload(logits={"z": torch.ones(7, 10)}).to_records(), expected, LIMIT)
    with pytest.raises(PayloadError, match=r"shape \(7, 9\), asked for was \(None, 10\)"):
        receive(Payload(logits={"z": torch.ones(7, 9)}).to_records(), expected, LIMIT)


def test_a_payload_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadError, match="payload of 4000129 bytes is over the limit of 1000000"):
        receive(Payload(weights={"w": torch.ones(10**6)}).to_records(), None, LIMIT)


def test_a_lying_header_takes_no_memory() -> None:
    array = Array(np.ones(4, np.float32))
    array.data = array.data.replace(b"(4,), }" + b" " * 10, b"(10000000000,), }")
    assert b"10000000000" in array.data
    tracemalloc.start()
    with pytest.raises(PayloadError, match=r"'w': its header says \(10000000000,\) of float32, its body has 16"):
        receive(RecordDict({"weights": ArrayRecord({"w": array})}), None, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"not an array", b"\x93NUMPY\x01\x00\x05\x00{'x'}"])
def test_damaged_arrays_are_refused(data: bytes) -> None:
    array = Array("float32", (1,), "numpy.ndarray", data)
    with pytest.raises(PayloadError, match="array 'w'"):
        from_records(RecordDict({"weights": ArrayRecord({"w": array})}))


def test_objects_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(PayloadError, match="arrays of kind 'secrets', valid are weights, .*logits"):
        from_records(RecordDict({"secrets": ArrayRecord({"w": Array(np.ones(1))})}))
    text = Array(np.array(["text"]))
    with pytest.raises(PayloadError, match="dtype <U4, valid are <f8"):
        from_records(RecordDict({"weights": ArrayRecord({"w": text})}))
    with pytest.raises(PayloadError, match="serialised as 'pickle'"):
        from_records(RecordDict({"weights": ArrayRecord({"w": Array("float32", (1,), "pickle", b"")})}))


def test_bytes_are_counted_as_serialised() -> None:
    payload = Payload(
        logits={"z": torch.ones(300, 10)},
        numbers={"examples": 3},
        strings={"hash": "abcd"},
        indices={"i": torch.ones(5)},
    )
    sizes = count_bytes(payload.to_records())
    assert sizes == {"logits": 300 * 10 * 4 + 128 + 1, "indices": 20 + 128 + 1, "numbers": 8 + 8, "strings": 4 + 4}


def test_what_the_core_adds_is_not_counted_and_flowers_arrays_are_weights() -> None:
    array = Array(np.ones(2, np.float32))
    records = RecordDict({"arrays": ArrayRecord({"w": array}), "report": MetricRecord({"personal/accuracy": 0.5})})
    assert count_bytes(records) == {"weights": 8 + 128 + 1}
    assert torch.equal(from_records(records).weights["w"], torch.ones(2))


REPLIES = st.lists(
    st.tuples(hnp.arrays(np.float32, 4, elements=st.floats(-5, 5, width=32)), st.integers(1, 500)),
    min_size=1,
    max_size=9,
)


@given(REPLIES)
@settings(deadline=None)
def test_weighted_mean_is_the_mean_weighted_by_examples(replies: list) -> None:
    total = None
    for array, examples in replies:
        one = Payload(
            weights={"w": torch.from_numpy(array.copy())}, numbers={"examples": examples, "loss": float(array[0])}
        )
        total = one if total is None else weighted_mean(total, one)
    assert total is not None
    counts = np.array([n for _, n in replies], np.float64)
    right = sum(a.astype(np.float64) * n for a, n in replies) / counts.sum()
    np.testing.assert_allclose(total.weights["w"].numpy(), right, atol=5e-6)
    np.testing.assert_allclose(total.numbers["loss"], right[0], atol=5e-6)
    assert total.numbers["examples"] == counts.sum()


@given(hnp.arrays(np.float32, 3, elements=st.floats(-1e3, 1e3, width=32)), st.lists(st.integers(1, 10**4), min_size=2))
@settings(deadline=None)
def test_the_mean_of_equal_arrays_is_exactly_that_array(array: np.ndarray, counts: list[int]) -> None:
    total = Payload(weights={"w": torch.from_numpy(array.copy())}, numbers={"examples": counts[0]})
    for count in counts[1:]:
        total = weighted_mean(total, Payload(weights={"w": torch.from_numpy(array)}, numbers={"examples": count}))
    assert np.array_equal(total.weights["w"].numpy(), array)


def test_counters_are_averaged_and_rounded() -> None:
    one = Payload(weights={"n": torch.tensor(10)}, numbers={"examples": 1})
    merged = weighted_mean(one, Payload(weights={"n": torch.tensor(20)}, numbers={"examples": 2}))
    assert merged.weights["n"].item() == 17
    assert merged.weights["n"].dtype == torch.int64


def test_every_limit_is_told_by_its_kind() -> None:
    payload = Payload(images={"x": torch.zeros(1, 1, 40, 40, dtype=torch.uint8)}, logits={"z": torch.zeros(10**4)})
    with pytest.raises(PayloadError, match="images of 1729 bytes are over the limit of 1000"):
        receive(payload.to_records(), None, LIMIT)
    assert receive(Payload(logits={"z": torch.zeros(10**4)}).to_records(), None, LIMIT)


def test_counts_of_images_are_bounded_by_what_the_node_has() -> None:
    expected = Expected(
        statistics={"counts": ArraySpec((2,), torch.int32, counts=True)}, numbers={"examples": IMAGES}, most_images=10
    )

    def told(counts: list[int], examples: float) -> Payload:
        return Payload(statistics={"counts": torch.tensor(counts, dtype=torch.int32)}, numbers={"examples": examples})

    assert receive(told([4, 6], 10).to_records(), expected, LIMIT)
    for counts, examples, message in (
        ([5, 6], 10, "statistics 'counts' counts 11 images, the node has 10"),
        ([-1, 6], 10, "statistics 'counts' has values outside 0.0 to"),
        ([5, 5], 11, "number 'examples' is 11, valid is 1.0 to 10"),
        ([5, 5], 0, "number 'examples' is 0, valid is 1.0 to 10"),
    ):
        with pytest.raises(PayloadError, match=message):
            receive(told(counts, examples).to_records(), expected, LIMIT)


HEADERS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda code, order, shape: f"{{'descr': '{code}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode(),
        st.sampled_from(["<f4", "|b1", "|O", ">f8", "<f16", "<U9", "\x8e"]) | st.text(max_size=9),
        st.sampled_from(["True", "False", "0"]),
        st.lists(st.integers(-(2**70), 2**70) | st.integers(0, 3), max_size=70).map(tuple) | st.text(max_size=30),
    ),
)


@given(HEADERS, st.binary(max_size=64), st.none() | st.integers(0, 2**16 - 1))
@settings(deadline=None, max_examples=400)
def test_no_bytes_get_anything_but_a_named_refusal_out_of_the_decoder(
    header: bytes, body: bytes, length: int | None
) -> None:
    size = min(len(header), 2**16 - 1) if length is None else length
    array = Array("float32", (1,), "numpy.ndarray", b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + header + body)
    with contextlib.suppress(PayloadError):
        tensor = receive(RecordDict({"weights": ArrayRecord({"w": array})}), None, LIMIT).weights["w"]
        assert tensor.numel() * tensor.element_size() <= len(body) + len(header)


@pytest.mark.parametrize(
    ("code", "shape", "body", "message"),
    [
        ("|b1", "(2,)", b"\x00\x07", "truth values that are neither 0 nor 1"),
        ("<f4", "(0, 999999999999999999)", b"", "more than an array can be"),
        ("<f4", "(" + "1, " * 16 + "1)", b"\x00" * 4, "more than an array can be"),
        ("\x8e\x8e", "(1,)", b"", "does not start with the header"),
    ],
)
def test_what_the_fuzzer_found_stays_refused(code: str, shape: str, body: bytes, message: str) -> None:
    header = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}, }}\n".encode("latin-1")
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body
    array = Array("float32", (1,), "numpy.ndarray", data)
    with pytest.raises(PayloadError, match=message):
        from_records(RecordDict({"weights": ArrayRecord({"w": array})}))


def test_nothing_of_ours_unpickles() -> None:
    home = Path(__file__).resolve().parents[1]
    sources = [path for part in ("fedkd", "strategies", "deploy") for path in sorted((home / part).rglob("*.py"))]
    assert len(sources) > 60
    unpickling = r"pickle\.|import pickle|torch\.load\b|allow_pickle=True|(?<![.\w])(eval|exec)\("
    for path in sources:
        assert not re.search(unpickling, path.read_text()), path


def test_a_held_array_is_flowers_array_with_the_same_bytes() -> None:
    for values in (np.ones((2, 3), np.float32), np.array(7), np.zeros((0, 4), np.int64), np.array([True])):
        held, flowers = HeldArray(values), Array(values)
        assert (held.dtype, held.shape, held.stype, held.data) == (
            flowers.dtype, flowers.shape, flowers.stype, flowers.data,
        )  # fmt: skip
        assert held.size() == len(flowers.data)
        assert pickle.loads(pickle.dumps(held)).data == flowers.data


def test_arrays_are_copied_where_they_shall_be() -> None:
    tensor = torch.zeros(3)
    snapshot = Payload(weights={"w": tensor}).to_records()
    live = Payload(weights={"w": tensor}).to_records(copy=False)
    mine = from_records(live)
    shared = from_records(live, copy=False)
    kept = owned(live)
    tensor += 1
    assert [float(p.weights["w"][0]) for p in (from_records(snapshot), mine, shared, from_records(kept))] == [
        0,
        0,
        1,
        0,
    ]


def test_read_only_memory_is_read_and_never_written() -> None:
    values = np.ones(3, np.float32)
    values.flags.writeable = False
    record = ArrayRecord()
    record["w"] = HeldArray(values)
    assert torch.equal(tensors_of(record, copy=False)["w"], torch.ones(3))
    tensors_of(record)["w"].add_(1)
    assert values.tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_are_finite_or_not_whatever_their_size(bad: float, dtype: torch.dtype) -> None:
    large = torch.full((5, 7), torch.finfo(dtype).max, dtype=dtype)  # its sum of squares is not finite
    assert is_finite(large)
    assert is_finite(torch.zeros(0, dtype=dtype))
    large[2, 3] = bad
    assert not is_finite(large)

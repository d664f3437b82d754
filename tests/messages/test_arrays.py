"""Arrays of Flower's are read as they are meant, without a copy where none is needed, and damaged ones are refused."""

from __future__ import annotations

import contextlib
import math
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd import Payload
from fedkd.config import Limits
from fedkd.messages.arrays import (
    HeldArray,
    PayloadError,
    are_within,
    array_record,
    is_finite,
    on_cpu,
    owned,
    parts_of,
    split_off,
    tensors_of,
    under,
)
from fedkd.messages.arrival import receive
from fedkd.messages.payload import from_records

LIMIT = Limits(10**6, {"images": 1000})


def test_columns_first_arrays_of_foreign_clients_are_read_right() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    records = RecordDict({"logits": ArrayRecord({"z": Array(array)})})
    assert torch.equal(from_records(records).logits["z"], torch.arange(6.0).double().reshape(2, 3))


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
        ("|b1", "(2,)", b"\x00\x07", "boolean values that are neither 0 nor 1"),
        ("<f4", "(0, 999999999999999999)", b"", "more values than an array may have"),
        ("<f4", "(" + "1, " * 16 + "1)", b"\x00" * 4, "more values than an array may have"),
        ("\x8e\x8e", "(1,)", b"", "does not start with the header"),
    ],
)
def test_what_the_fuzzer_found_stays_refused(code: str, shape: str, body: bytes, message: str) -> None:
    header = f"{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}, }}\n".encode("latin-1")
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body
    array = Array("float32", (1,), "numpy.ndarray", data)
    with pytest.raises(PayloadError, match=message):
        from_records(RecordDict({"weights": ArrayRecord({"w": array})}))


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


def test_a_group_is_split_off_as_it_was_put_in() -> None:
    model, head = {"a/weight": torch.ones(2), "headless": torch.ones(1)}, {"b/weight": torch.zeros(2)}
    rest, group = split_off("head", model | under("head", head))
    assert (rest.keys(), group.keys()) == (model.keys(), head.keys())
    assert split_off("head", model) == (model, {})


def test_tensors_on_the_cpu_are_contiguous_and_share_memory_where_they_can() -> None:
    plain, last = torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    found = on_cpu({"plain": plain.requires_grad_(), "last": last})
    assert found["plain"].data_ptr() == plain.data_ptr()
    assert not found["plain"].requires_grad
    assert found["last"].is_contiguous()


def test_a_flat_dict_is_parted_at_the_first_slash() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    assert parts_of({"a/b/c/d": one, "a/e": two, "f/g": one}) == {"a": {"b/c/d": one, "e": two}, "f": {"g": one}}


def test_an_array_may_have_16_axes_and_lengths_of_2_to_the_31() -> None:
    def read(shape: tuple[int, ...], body: bytes) -> torch.Tensor:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body
        return tensors_of(ArrayRecord({"w": Array("float32", (1,), "numpy.ndarray", data)}))["w"]

    assert read((1,) * 16, b"\x00" * 4).shape == (1,) * 16
    assert read((0, 2**31), b"").shape == (0, 2**31)
    for shape, body in (((1,) * 17, b"\x00" * 4), ((0, 2**31 + 1), b"")):
        with pytest.raises(PayloadError, match="more values than an array may have"):
            read(shape, body)


def test_a_record_is_a_copy_unless_it_shall_share_memory() -> None:
    tensor = torch.zeros(2)
    mine, shared = array_record({"w": tensor}), array_record({"w": tensor}, copy=False)
    tensor += 1
    assert mine["w"].numpy().tolist() == [0, 0]
    assert shared["w"].numpy().tolist() == [1, 1]


def test_values_within_the_limit_include_it() -> None:
    assert are_within(torch.tensor([-2.0, 2.0]), 2.0)
    assert not are_within(torch.tensor([-2.1, 0.0]), 2.0)
    assert not are_within(torch.tensor([0.0, 2.1]), 2.0)
    assert are_within(torch.tensor([9]), 2.0)  # integers are always

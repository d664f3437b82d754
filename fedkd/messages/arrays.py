"""Converts tensors to Flower's records and back, without a copy where both sides share memory."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from ..errors import PayloadError
from .flower import record_of

_DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1")
_MOST_AXES = 16
_MOST_VALUES = 2**31  # limits the other lengths too if one length is 0
_NPY = b"\x93NUMPY\x01\x00"

# only the header that numpy.save writes: NumPy's own reader evaluates any header and allocates memory before it checks
_HEADER = re.compile(
    rb"\{'descr': '([!-&(-~]{2,8})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,18}(?:, \d{1,18}){0,40},?)\), \} *\n"
)
Tensors = dict[str, Tensor]


def to_cpu(tensor: Tensor, *, copy: bool) -> Tensor:
    """Return a tensor on the CPU in the usual order of memory. Without `copy`, one that is there so is not copied."""
    return tensor.detach().to("cpu", copy=copy, memory_format=torch.contiguous_format)


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies of tensors on the CPU, such as of a model's `state_dict()`. They share no memory."""
    return {name: to_cpu(tensor, copy=True) for name, tensor in tensors.items()}


def on_cpu(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors on the CPU, to be sent or stored at once: those that are there may share memory."""
    return {name: to_cpu(tensor, copy=False) for name, tensor in tensors.items()}


def under(part: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors with the names `part/<name>`, so that one flat dict can contain several groups."""
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def split_off(part: str, tensors: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Return a flat dict without the group `part`, and the group: the inverse of `tensors | under(part, group)`."""
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}/")}
    return rest, {name[len(part) + 1 :]: tensor for name, tensor in tensors.items() if name not in rest}


def parts_of(state: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Return the groups of a flat dict by the part of each name before the first `/`: the inverse of `under`."""
    parts: dict[str, Tensors] = {}
    for key, tensor in state.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = tensor
    return parts


class HeldArray(Array):
    """Flower's Array as a contiguous NumPy array, for simulations: it is not converted to bytes and back.

    Between processes of one machine it is pickled as an array, so that readers share one copy. Flower's own runtimes
    identify objects by the names of their classes: call `serialised` before one of them sends this array.
    """

    values: np.ndarray

    def __init__(self, values: np.ndarray) -> None:
        # sets all fields together: Flower's own way is slower, because it inspects each field
        self.__dict__.update(values=values, dtype=_name_of(values.dtype), shape=values.shape, stype="numpy.ndarray")

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """Return the array as `numpy.save` writes it."""
        buffer = BytesIO()
        np.save(buffer, self.values, allow_pickle=False)
        return buffer.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldArray, (self.values,)

    def serialised(self) -> Array:
        """Return the array as Flower's own class, serialised once for all messages that contain it."""
        if "_serialised" not in self.__dict__:
            self.__dict__["_serialised"] = Array(self.dtype, self.shape, self.stype, self.data)
        return cast(Array, self.__dict__["_serialised"])

    def numpy(self) -> np.ndarray:
        """Return the array itself."""
        return self.values

    def view(self) -> Tensor:
        """Return the array as a tensor that shares its memory, which may be read-only."""
        if self.values.flags.writeable:
            return torch.from_numpy(self.values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it cannot mark a tensor as read-only
            return torch.from_numpy(self.values)

    def size(self) -> int:
        """Return the number of bytes of `data`."""
        return _header_bytes(self.values.dtype.str, self.shape) + self.values.nbytes


_name_of = cache(str)  # the name of a dtype


@lru_cache(maxsize=10_000)
def _header_bytes(code: str, shape: tuple[int, ...]) -> int:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": code, "fortran_order": False, "shape": shape})
    return buffer.tell()


def array_record(tensors: Mapping[str, Tensor], copy: bool = True) -> ArrayRecord:
    """Return the tensors as a Flower record. Without `copy`, CPU tensors share memory with the record."""
    return record_of({name: HeldArray(to_cpu(tensor, copy=copy).numpy()) for name, tensor in tensors.items()})


def tensors_of(record: Mapping[str, Array], copy: bool = True) -> Tensors:
    """Return the arrays of a Flower record as tensors. Without `copy` they share its memory and must not be changed.

    Raises PayloadError for an array whose bytes do not match its header. No memory is allocated before this check.
    """
    return {name: _tensor(name, array, copy) for name, array in record.items()}


def _tensor(name: str, array: Array, copy: bool) -> Tensor:
    if isinstance(array, HeldArray):
        if array.values.dtype.str not in _DTYPES:
            raise PayloadError(f"array {name!r} has dtype {array.values.dtype.str}, valid are {', '.join(_DTYPES)}")
        return torch.from_numpy(array.values.copy()) if copy else array.view()
    data, start = array.data, len(_NPY) + 2
    if array.stype != "numpy.ndarray":
        raise PayloadError(f"array {name!r} is serialised as {array.stype!r}, valid is 'numpy.ndarray'")
    end = start + int.from_bytes(data[len(_NPY) : start], "little")
    header = _HEADER.fullmatch(data[start:end])
    if not data.startswith(_NPY) or header is None:
        raise PayloadError(f"array {name!r} is damaged: it does not start with the header of an npy array")
    code, fortran, lengths = (group.decode() for group in header.groups())
    if code not in _DTYPES:
        raise PayloadError(f"array {name!r} has dtype {code}, valid are {', '.join(_DTYPES)}")
    dtype, shape = np.dtype(code), tuple(int(length) for length in lengths.split(",") if length.strip())
    if math.prod(shape) * dtype.itemsize != len(data) - end:
        raise PayloadError(f"array {name!r}: its header says {shape} of {dtype}, its body has {len(data) - end} bytes")
    if len(shape) > _MOST_AXES or math.prod(max(1, length) for length in shape) > _MOST_VALUES:
        raise PayloadError(f"array {name!r}: its header says {shape}, more values than an array may have")
    if code == "|b1" and data[end:].strip(b"\x00\x01"):
        raise PayloadError(f"array {name!r} has boolean values that are neither 0 nor 1")
    values = np.frombuffer(data, dtype, offset=end)
    ordered = values.reshape(shape[::-1]).T if fortran == "True" else values.reshape(shape)
    return torch.from_numpy(np.array(ordered, order="C"))


def owned(records: RecordDict) -> RecordDict:
    """Return records whose arrays share no memory with anything else."""
    return _changed(records, lambda array: HeldArray(array.values.copy()))


def serialised(records: RecordDict) -> RecordDict:
    """Return records that Flower's own runtimes can send: with the arrays as bytes."""
    return _changed(records, HeldArray.serialised)


def _changed(records: RecordDict, change: Callable[[HeldArray], Array]) -> RecordDict:
    """Return records with each HeldArray changed. Flower's own arrays stay: they are bytes, and share no memory."""
    changed = RecordDict(dict(records))
    for key, record in records.array_records.items():
        changed[key] = record_of({n: change(a) if isinstance(a, HeldArray) else a for n, a in record.items()})
    return changed


def are_within(tensor: Tensor, limit: float) -> bool:
    """Return whether all values are finite, and none is beyond -limit to limit. Integers always are."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # one pass without extra memory; NaN if there is one
    return -limit <= float(low) and float(high) <= limit


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite."""
    return are_within(tensor, sys.float_info.max)

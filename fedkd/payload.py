"""What crosses between server and nodes: `Payload`, its Flower records, the check on arrival, and its size in bytes.

A payload is named arrays, sorted by kind, plus named numbers and strings. It maps one to one onto Flower's RecordDict:
an ArrayRecord a kind, a MetricRecord `numbers`, a ConfigRecord `strings`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from .config import KINDS, Limits

FLOWER_ARRAYS = "arrays"  # where Flower's own strategies keep the model's weights
ROUND = "round"  # what the core tells a node beside the payload
NODE = "node"  # there, on real sites: the node's number
REPORT = "report"  # a node's metrics, beside the payload: measurement, not part of the method
SITE = "site"  # what a real site tells of itself, beside the payload
_OUTSIDE = (ROUND, REPORT, SITE)
MOST_IMAGES = 2**31 - 1  # that a node can claim to have
IMAGES = (1.0, float(MOST_IMAGES))  # the range of a number of images
_DTYPES = ("<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "|u1", "|b1")
_ROUNDING = 1e-3  # of rows of probabilities, also in half precision
_MOST_AXES = 16
_MOST_VALUES = 2**31  # also of an array that holds none, because one of its lengths is 0
_NPY = b"\x93NUMPY\x01\x00"
# the header as numpy.save writes it and no other; numpy's own reader evaluates it and allocates before it compares
_HEADER = re.compile(
    rb"\{'descr': '([!-&(-~]{2,8})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,18}(?:, \d{1,18}){0,40},?)\), \} *\n"
)

Tensors = dict[str, Tensor]


@dataclass
class Payload:
    """Named arrays by kind (CPU tensors), named numbers, named strings.

    Example: `Payload(logits={"targets": z}, numbers={"examples": 600})`.
    """

    weights: Tensors = field(default_factory=dict)
    control_variates: Tensors = field(default_factory=dict)
    logits: Tensors = field(default_factory=dict)
    prototypes: Tensors = field(default_factory=dict)
    images: Tensors = field(default_factory=dict)
    statistics: Tensors = field(default_factory=dict)
    generator: Tensors = field(default_factory=dict)
    indices: Tensors = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)

    def by_kind(self) -> Iterator[tuple[str, Tensors]]:
        """Yield each kind that holds arrays, with its arrays."""
        for kind in KINDS:
            if arrays := getattr(self, kind):
                yield kind, arrays

    def to_records(self, copy: bool = True) -> RecordDict:
        """Return the payload as Flower records. Without `copy`, arrays on the CPU are the payload's own memory."""
        records = RecordDict()
        for kind, arrays in self.by_kind():
            records[kind] = array_record(arrays, copy)
        if self.numbers:
            records["numbers"] = MetricRecord(dict(self.numbers))
        if self.strings:
            records["strings"] = ConfigRecord(dict(self.strings))
        return records


class ArraySpec(NamedTuple):
    """What an array must look like: its shape (None: any length) and dtype; the closed range of its values, if any;
    whether its rows are probabilities that sum to 1; whether it counts a node's images, by class or so.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype = torch.float32
    between: tuple[float, float] | None = None
    probabilities: bool = False
    counts: bool = False


@dataclass(frozen=True)
class Expected:
    """What a reply must hold: arrays by kind, and numbers in a closed range; neither less nor more than this.

    `most_images`: how many images the node is known to have, at most: the bound of what counts them.
    """

    weights: Mapping[str, ArraySpec] = field(default_factory=dict)
    control_variates: Mapping[str, ArraySpec] = field(default_factory=dict)
    logits: Mapping[str, ArraySpec] = field(default_factory=dict)
    prototypes: Mapping[str, ArraySpec] = field(default_factory=dict)
    images: Mapping[str, ArraySpec] = field(default_factory=dict)
    statistics: Mapping[str, ArraySpec] = field(default_factory=dict)
    generator: Mapping[str, ArraySpec] = field(default_factory=dict)
    indices: Mapping[str, ArraySpec] = field(default_factory=dict)
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    strings: tuple[str, ...] = ()
    most_images: int = MOST_IMAGES


def like(tensors: Mapping[str, Tensor]) -> dict[str, ArraySpec]:
    """Return the specs of arrays that must look like these."""
    return {name: ArraySpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return copies of their own on the CPU, such as of a model's `state_dict()`."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def under(part: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors named `part/<name>`, so that several groups make one flat state."""
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def parts_of(state: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Return a flat state's groups by the part of each name before the first `/`: the inverse of `under`."""
    parts: dict[str, Tensors] = {}
    for key, tensor in state.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = tensor
    return parts


class PayloadError(ValueError):
    """A payload that is not what was asked for; the text names the array or number and what was wrong."""


class HeldArray(Array):
    """Flower's Array over a NumPy array, contiguous, within a simulation: nothing is written as bytes and read again.

    Between processes of one machine it is pickled as what it is, so that readers share one copy. Flower's own runtimes
    know objects by the names of their classes: what leaves through one has to go through `serialised` first.
    """

    values: np.ndarray

    def __init__(self, values: np.ndarray) -> None:
        # at once: Flower's own way to set a field looks at each
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
        """Return the array as Flower's own class, written once for all messages that hold it."""
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
            warnings.simplefilter("ignore")  # that torch cannot mark a tensor as read-only
            return torch.from_numpy(self.values)

    def size(self) -> int:
        """Return how many bytes `data` has."""
        return _header_bytes(self.values.dtype.str, self.shape) + self.values.nbytes


_name_of = lru_cache(maxsize=100)(str)  # of a dtype


@lru_cache(maxsize=10_000)
def _header_bytes(code: str, shape: tuple[int, ...]) -> int:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": code, "fortran_order": False, "shape": shape})
    return buffer.tell()


def array_record(tensors: Mapping[str, Tensor], copy: bool = True) -> ArrayRecord:
    """Return the tensors as a Flower record. Without `copy`, those on the CPU share its memory."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        held = tensor.detach().to("cpu", copy=copy, memory_format=torch.contiguous_format)
        record[name] = HeldArray(held.contiguous().numpy())
    return record


def tensors_of(record: Mapping[str, Array], copy: bool = True) -> Tensors:
    """Return the arrays of a Flower record as tensors: of their own, or without `copy` where they are, to be read.

    Raises PayloadError for an array whose bytes do not match its header. No memory is taken before that is checked.
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
        raise PayloadError(f"array {name!r}: its header says {shape}, more than an array can be")
    if code == "|b1" and data[end:].strip(b"\x00\x01"):
        raise PayloadError(f"array {name!r} has truth values that are neither 0 nor 1")
    values = np.frombuffer(data, dtype, offset=end) if end < len(data) else np.empty(0, dtype)
    ordered = values.reshape(shape[::-1]).T if fortran == "True" else values.reshape(shape)
    return torch.from_numpy(np.array(ordered, order="C"))


def from_records(records: RecordDict, copy: bool = True) -> Payload:
    """Return the payload that Flower records hold. Flower's own `arrays` are weights.

    Without `copy`, arrays may share the records' memory, and are to be read. Raises PayloadError for records of another
    kind and for damaged arrays.
    """
    payload = Payload()
    for key, record in records.items():
        if key in _OUTSIDE:
            continue
        if isinstance(record, ArrayRecord):
            kind = "weights" if key == FLOWER_ARRAYS else key
            if kind not in KINDS:
                raise PayloadError(f"arrays of kind {key!r}, valid are {', '.join(KINDS)}")
            setattr(payload, kind, tensors_of(record, copy))
        elif isinstance(record, MetricRecord):
            payload.numbers.update({k: v for k, v in record.items() if not isinstance(v, list)})
        else:
            payload.strings.update({k: v for k, v in record.items() if isinstance(v, str)})
    return payload


def owned(records: RecordDict) -> RecordDict:
    """Return records whose arrays share no memory with anything else."""
    return _changed(records, lambda array: HeldArray(array.values.copy()))


def serialised(records: RecordDict) -> RecordDict:
    """Return records as Flower's own runtimes can send them: arrays as their bytes."""
    return _changed(records, HeldArray.serialised)


def _changed(records: RecordDict, change: Callable[[HeldArray], Array]) -> RecordDict:
    """Return records with their held arrays changed; Flower's own are bytes already, and their own."""
    changed = RecordDict(dict(records))
    for key, record in records.array_records.items():
        changed[key] = arrays = ArrayRecord()
        for name, array in record.items():
            arrays[name] = change(array) if isinstance(array, HeldArray) else array
    return changed


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite."""
    if tensor.dtype in (torch.float32, torch.float64):
        flat = tensor.reshape(-1)
        if math.isfinite(float(flat.dot(flat))):  # one pass without memory; it may overflow where no value does
            return True
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def receive(records: RecordDict, expected: Expected | None, limits: Limits, copy: bool = True) -> Payload:
    """Decode and check what arrived: sizes, names, shapes, dtypes, finite values, numbers in range.

    Sizes are checked before anything is decoded. Without `expected` only the sizes and the finite values are checked.
    `copy` as in `from_records`. Raises PayloadError.
    """
    sizes = count_bytes(records)
    size = sum(sizes.values())
    if size > limits.total:
        raise PayloadError(f"payload of {size} bytes is over the limit of {limits.total}")
    for kind, most in limits.kinds.items():
        if sizes.get(kind, 0) > most:
            raise PayloadError(f"{kind} of {sizes[kind]} bytes are over the limit of {most}")
    payload = from_records(records, copy)
    for key, record in records.items():
        plain = str if isinstance(record, ConfigRecord) else int | float
        if key in _OUTSIDE or isinstance(record, ArrayRecord):
            continue
        if wrong := [name for name, value in record.items() if not isinstance(value, plain)]:
            raise PayloadError(f"{key} {wrong[0]!r} is neither a number nor a text")
    for kind, arrays in payload.by_kind():
        for name, tensor in arrays.items():
            if not is_finite(tensor):
                raise PayloadError(f"{kind} {name!r} has values that are not finite")
    for name, number in payload.numbers.items():
        if not math.isfinite(number):
            raise PayloadError(f"number {name!r} is {number}")
    if expected is not None:
        _check_names(payload, expected)
    return payload


def _check_names(payload: Payload, expected: Expected) -> None:
    for kind in (*KINDS, "numbers", "strings"):
        got, wanted = getattr(payload, kind), getattr(expected, kind)
        if not got and not wanted:
            continue
        got, wanted = set(got), set(wanted)
        if missing := wanted - got:
            raise PayloadError(f"{kind} without {', '.join(map(repr, sorted(missing)))}")
        if surplus := got - wanted:
            raise PayloadError(f"{kind} with {', '.join(map(repr, sorted(surplus)))}, which nobody asked for")
    for kind, arrays in payload.by_kind():
        for name, tensor in arrays.items():
            shape, dtype, between, probabilities, counts = getattr(expected, kind)[name]
            fits = len(shape) == tensor.dim() and all(
                want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
            )
            if not fits:
                raise PayloadError(f"{kind} {name!r} has shape {tuple(tensor.shape)}, asked for was {shape}")
            if tensor.dtype != dtype:
                raise PayloadError(f"{kind} {name!r} has dtype {tensor.dtype}, asked for was {dtype}")
            bounds = between or _range(probabilities, counts)
            if bounds is not None and tensor.numel():
                (low, high), (least, most) = bounds, torch.aminmax(tensor)
                if not low <= float(least) <= float(most) <= high:
                    raise PayloadError(f"{kind} {name!r} has values outside {low} to {high}")
            if probabilities and bool(((tensor.double().sum(-1) - 1).abs() > _ROUNDING).any()):
                raise PayloadError(f"{kind} {name!r} has rows that do not sum to 1")
            if counts and int(tensor.sum(dtype=torch.float64)) > expected.most_images:
                raise PayloadError(
                    f"{kind} {name!r} counts {int(tensor.sum(dtype=torch.float64))} images, "
                    f"the node has {expected.most_images}"
                )
    for name, (low, high) in expected.numbers.items():
        high = min(high, expected.most_images) if (low, high) == IMAGES else high
        if not low <= payload.numbers[name] <= high:
            raise PayloadError(f"number {name!r} is {payload.numbers[name]}, valid is {low} to {high}")


def _range(probabilities: bool, counts: bool) -> tuple[float, float] | None:
    if counts:
        return 0.0, float(MOST_IMAGES)
    return (0.0, 1.0) if probabilities else None


def count_bytes(records: RecordDict) -> dict[str, int]:
    """Return what these records weigh as sent, in bytes by kind: serialised arrays, 8 a number, strings; names too.

    An array counts as Flower serialises it (npy: its data and a header of 128 bytes). What the core adds beside the
    payload (the round, the metrics) is not counted.
    """
    sizes: dict[str, int] = {}
    for key, record in records.items():
        if key in _OUTSIDE:
            continue
        if isinstance(record, ArrayRecord):
            kind = "weights" if key == FLOWER_ARRAYS else key
            size = sum(len(name.encode()) + _array_bytes(array) for name, array in record.items())
        else:
            kind = "numbers" if isinstance(record, MetricRecord) else "strings"
            size = sum(len(name.encode()) + _scalar_bytes(value) for name, value in record.items())
        sizes[kind] = sizes.get(kind, 0) + size
    return sizes


def _array_bytes(array: Array) -> int:
    return array.size() if isinstance(array, HeldArray) else len(array.data)


def _scalar_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_scalar_bytes(item) for item in value)
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8


def weighted_mean(total: Payload, reply: Payload) -> Payload:
    """Merge two payloads into their mean, weighted by the number `examples`; in place in `total`.

    Running form, m += (x - m) n_x / (n_m + n_x): the mean of equal arrays is exactly that array. Arrays of
    integers (counters of batch norm) are averaged in float64 and rounded. Raises PayloadError without `examples`.
    """
    if "examples" not in total.numbers or "examples" not in reply.numbers:
        raise PayloadError("a weighted mean needs the number 'examples' in each reply")
    examples = total.numbers["examples"] + reply.numbers["examples"]
    share = reply.numbers["examples"] / examples if examples else 0.0
    for kind, arrays in total.by_kind():
        for name, tensor in arrays.items():
            other = getattr(reply, kind)[name]
            if tensor.is_floating_point():
                tensor.lerp_(other, share)
            else:
                tensor.copy_(torch.lerp(tensor.double(), other.double(), share).round())
    for name, number in total.numbers.items():
        total.numbers[name] = number + (reply.numbers[name] - number) * share
    total.numbers["examples"] = examples
    return total

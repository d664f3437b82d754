"""The content of messages: `Payload`, its Flower records, and what a reply must contain.

A payload contains named arrays, sorted by kind, named numbers and named strings. It maps one to one to Flower's
RecordDict: an ArrayRecord for each kind, a MetricRecord `numbers`, a ConfigRecord `strings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from ..config import KINDS
from ..errors import PayloadError
from .arrays import Tensors, array_record, tensors_of
from .metric_names import MOST

FLOWER_ARRAYS = "arrays"  # the record in which Flower's own strategies put the model's weights
FLOWER_METRICS = "metrics"  # their record of numbers
NUMBERS, STRINGS = "numbers", "strings"
ROUND = "round"  # a record that the core adds to the payload of a request
NODE = "node"  # in this record, on real sites: the node's number
REPORT = "report"  # a record beside the payload: a node's metrics, which are not part of the method
SITE = "site"  # a record beside the payload: what a site reports about itself
OUTSIDE = (ROUND, REPORT, SITE)
MOST_IMAGES = 2**31 - 1  # the largest number of images that a node may report
IMAGES = (1.0, float(MOST_IMAGES))  # the range of a number of images
ANY_NUMBER = (-MOST, MOST)  # the range of a number without limits: finite in float32
LOSS = (-1e-4, MOST)  # the range of a training loss: at least 0, but for rounding
COUNTER = "num_batches_tracked"  # the end of the names of batch norm's counters, the integers that training changes
UNWEIGHTED = 1.0  # the number `examples` of each reply if all nodes have the same weight in a mean


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
        """Yield each kind that contains arrays, with its arrays."""
        for kind in KINDS:
            if arrays := getattr(self, kind):
                yield kind, arrays

    def to_records(self, copy: bool = True) -> RecordDict:
        """Return the payload as Flower records. Without `copy`, CPU arrays share memory with the payload."""
        records = RecordDict()
        for kind, arrays in self.by_kind():
            records[kind] = array_record(arrays, copy)
        if self.numbers:
            records[NUMBERS] = MetricRecord(dict(self.numbers))
        if self.strings:
            records[STRINGS] = ConfigRecord(dict(self.strings))
        return records


class ArraySpec(NamedTuple):
    """What an array must look like: its shape (None: any length) and dtype; the closed range of its values, if any;
    whether its rows are probabilities that sum to 1; whether its values count a node's images, for example by class;
    the values that it must have, such as a table of positions in a model, which no training changes.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype = torch.float32
    between: tuple[float, float] | None = None
    probabilities: bool = False
    counts: bool = False
    constant: Tensor | None = None


@dataclass(frozen=True)
class Expected:
    """What a reply must contain: exactly these arrays, by kind, and these numbers, each in a closed range.

    `most_images`: the largest number of images that the node can have, which limits arrays and numbers that count them.
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
    """Return the specs for arrays with the names, shapes and dtypes of these.

    Integers are constants of a model, but for the counters of batch norm.
    """
    specs = {}
    for name, tensor in tensors.items():
        changes = tensor.is_floating_point() or name.endswith(COUNTER)
        specs[name] = ArraySpec(tuple(tensor.shape), tensor.dtype, constant=None if changes else tensor)
    return specs


def expected_model(
    weights: Mapping[str, Tensor], *, unweighted: bool = False, loss: tuple[float, float] = LOSS
) -> Expected:
    """Return what a reply with a trained model must contain: weights like these, the numbers `examples` and `loss`.

    `examples`: the node's number of images, the weight of its model in a mean; 1 if the mean is `unweighted`. `loss`:
    its range; `ANY_NUMBER` for an objective that may be below 0.
    """
    examples = (UNWEIGHTED, UNWEIGHTED) if unweighted else IMAGES
    return Expected(weights=like(weights), numbers={"examples": examples, "loss": loss})


def from_records(records: RecordDict, copy: bool = True) -> Payload:
    """Return the payload in Flower records. Flower's own record `arrays` becomes `weights`.

    Without `copy`, arrays may share memory with the records and must not be changed. Raises PayloadError for records of
    another kind and for damaged arrays.
    """
    payload = Payload()
    for key, record in records.items():
        if key in OUTSIDE:
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

"""What crosses between server and nodes: `Payload`, its Flower records, and what a reply must hold.

A payload is named arrays, sorted by kind, plus named numbers and strings. It maps one to one onto Flower's RecordDict:
an ArrayRecord a kind, a MetricRecord `numbers`, a ConfigRecord `strings`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from ..config import KINDS
from .arrays import PayloadError, Tensors, array_record, tensors_of

FLOWER_ARRAYS = "arrays"  # where Flower's own strategies keep the model's weights
ROUND = "round"  # what the core sends to a node beside the payload
NODE = "node"  # there, on real sites: the node's number
REPORT = "report"  # a node's metrics, beside the payload: measurement, not part of the method
SITE = "site"  # what a site reports of itself, beside the payload
OUTSIDE = (ROUND, REPORT, SITE)
MOST_IMAGES = 2**31 - 1  # that a node can claim to have
IMAGES = (1.0, float(MOST_IMAGES))  # the range of a number of images
ANY_NUMBER = (-math.inf, math.inf)  # the range of a number that may be any, such as a loss
UNWEIGHTED = 1.0  # the number `examples` of each reply, where all nodes count alike in a mean


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


def expected_model(weights: Mapping[str, Tensor], *, unweighted: bool = False) -> Expected:
    """Return what a reply with a trained model must hold: weights like these, the numbers `examples` and `loss`.

    `examples`: the node's number of images, the weight of its model in a mean; 1 where the mean is `unweighted`.
    """
    examples = (UNWEIGHTED, UNWEIGHTED) if unweighted else IMAGES
    return Expected(weights=like(weights), numbers={"examples": examples, "loss": ANY_NUMBER})


def from_records(records: RecordDict, copy: bool = True) -> Payload:
    """Return the payload that Flower records hold. Flower's own `arrays` are weights.

    Without `copy`, arrays may share the records' memory, and are to be read. Raises PayloadError for records of another
    kind and for damaged arrays.
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

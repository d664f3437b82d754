"""All data of a federation: the pool of samples, each node's part of it, and the public set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..streams import numpy_stream
from .codec import Codec
from .node_tests import DrawnTests
from .samples import Rows, Samples
from .series import last_steps
from .spec import DataSpec, Form
from .splits import Drawn
from .strata import Strata, strata_of

_CHUNK = 4096  # rows that are hashed together


def fingerprint_of(parts: Iterable[np.ndarray]) -> str:
    """Return a hash of arrays."""
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        for first in range(0, len(part), _CHUNK):  # of a mapped file, only a part is in memory
            digest.update(np.ascontiguousarray(part[first : first + _CHUNK]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length, stored in two arrays, so that a million nodes need only two objects."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Ragged:
        """Return the `Ragged` of these rows."""
        values = np.concatenate(rows) if len(rows) else np.empty(0, np.int64)
        return cls(values.astype(np.int64), np.cumsum([0, *(len(row) for row in rows)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self) -> np.ndarray:
        """Return the rows' lengths."""
        return np.diff(self.offsets)


class Noise(NamedTuple):
    """Noise on the nodes' images: the deviation at the last node, of pixels from 0 to 1, and the seed of the draws."""

    deviation: float
    seed: int


@dataclass(frozen=True)
class FederatedData:
    """All data of a federation. `train_parts[i]` and `test_parts[i]` are node i's positions in `train` and `test`.

    `validation_parts[i]`: positions in `train` too, of samples that node i does not train on; None if nodes have none.
    """

    train: Samples
    test: Samples
    train_parts: Ragged | Drawn
    test_parts: Ragged | DrawnTests
    node_domains: np.ndarray  # for each node: the domain of most of its images
    priors: np.ndarray | None  # nodes x classes: each node's label distribution, if known; test images are drawn by it
    public: Samples | None
    validation: Samples | None  # labelled images of the server's own
    public_labelled: bool
    classes: tuple[str, ...]  # the classes that models distinguish; or the labels, or targets, that they predict
    node_classes: tuple[str, ...]  # the first of them: without the public set's own classes
    domain_names: tuple[str, ...]
    codec: Codec  # how samples are encoded; fitted on the nodes' training samples
    # of the sets as they were loaded, before seeds draw from them; empty where there are none
    images_fingerprint: str = field(default="", kw_only=True)
    node_names: tuple[str, ...] = field(default=(), kw_only=True)  # if the set says who has which samples
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # what was done to missing or odd values, with counts
    validation_parts: Ragged | None = field(default=None, kw_only=True)
    noise: Noise | None = field(default=None, kw_only=True)
    known_padded: bool | None = field(default=None, kw_only=True)  # what `padded` says, if there are no samples here

    @property
    def clients(self) -> int:
        """Return the number of nodes."""
        return len(self.train_parts)

    @property
    def spec(self) -> DataSpec:
        """Return what the samples are."""
        return self.codec.spec

    @cached_property
    def form(self) -> Form:
        """Return what models get."""
        return self.codec.form

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height, width of images."""
        channels, height, width = self.spec.shape
        return channels, height, width

    def train_of(self, node: int) -> Samples:
        """Return a node's training images."""
        return self._own(node, self.train_parts[node], "train")

    def test_of(self, node: int) -> Samples:
        """Return a node's test images."""
        return self._noisy(self.test.take(self.test_parts[node]), node, "test")

    def validation_of(self, node: int) -> Samples | None:
        """Return a node's own validation samples, which may be none; None if nodes have no such samples."""
        if self.validation_parts is None:
            return None
        return self._own(node, self.validation_parts[node], "validation")

    def _own(self, node: int, positions: np.ndarray, part: str) -> Samples:
        own = self.train.take(positions)._replace(rows=Rows(self.train.inputs, positions))
        return self._noisy(own, node, part)

    def _noisy(self, samples: Samples, node: int, part: str) -> Samples:
        """Return a node's images with its noise, if there is any: normal, with a deviation that rises linearly from 0
        at the first node to `noise.deviation` at the last one. Pixels may leave their range: they are float32 then.
        """
        if self.noise is None:
            return samples
        deviation = self.noise.deviation * node / max(self.clients - 1, 1) * (self.spec.largest or 1.0)
        rng = numpy_stream(self.noise.seed, 0, node, f"noise-{part}")
        drawn = rng.standard_normal(samples.inputs.shape, dtype=np.float32)
        return Samples(samples.inputs.astype(np.float32) + np.float32(deviation) * drawn, samples.labels)

    def fewest_images(self) -> int:
        """Return the smallest number of training images that a node has; 0 if it is not known, as with real sites."""
        return int(self.train_parts.lengths().min(initial=len(self.train.labels)))

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Return the names of the columns of `label_counts`: classes, labels, or bins of the first target."""
        return self._bins.names if self.spec.task == "regression" else self.node_classes

    @cached_property
    def _bins(self) -> Strata:
        return strata_of(self.train.labels, self.spec.task, self.node_classes)

    @cached_property
    def shortest(self) -> int | None:
        """Return the fewest steps of a series, or tokens of a text; None for other kinds, and without any sample."""
        if self.spec.kind not in ("series", "tokens"):
            return None
        count = last_steps if self.spec.kind == "series" else lambda texts: np.count_nonzero(texts, axis=1)
        return min((int(count(one.inputs).min()) for one in self._every() if len(one.labels)), default=None)

    @property
    def padded(self) -> bool:
        """Return whether a series or text is, or at real sites may be, shorter than models get it."""
        if self.known_padded is not None:
            return self.known_padded
        return self.spec.kind in ("series", "tokens") and self.shortest != self.form.shape[-1]

    def _every(self) -> list[Samples]:
        """Return all samples: those of the nodes, the public set, the server's."""
        return [one for one in (self.train, self.test, self.public, self.validation) if one is not None]

    def label_counts(self) -> np.ndarray:
        """Return the table of training images, nodes x `counted`."""
        counts = np.zeros((self.clients, len(self.counted)), np.int64)
        groups = self._bins.of(self.train.labels) if self.spec.task != "multilabel" else self.train.labels
        for node in range(self.clients):
            own = groups[self.train_parts[node]]
            counts[node] = own.sum(0) if own.ndim == 2 else np.bincount(own, minlength=len(self.counted))
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash that is equal for federations with the same images, labels and partition."""
        arrays = [array for one in self._every() for array in (one.inputs, one.labels)]
        for parts in (self.train_parts, self.test_parts):
            if isinstance(parts, Ragged):
                arrays += [parts.values, parts.offsets]
            else:  # they are drawn when they are needed, so only those of the first nodes are hashed
                arrays += [parts[node] for node in range(min(len(parts), 10))]
        if self.noise is not None:
            arrays += [np.array([one]) for one in self.noise]
        return fingerprint_of(arrays)

    def pooled(self) -> np.ndarray:
        """Return the positions of all nodes' training images. Raises InputError if nodes share images, or if their
        images have noise.
        """
        if self.noise is not None:
            raise InputError(
                f"data.noise = {self.noise.deviation:g}: it is on the nodes' images, but the strategy pools images, "
                "which have none; remove data.noise, or use another strategy."
            )
        if isinstance(self.train_parts, Drawn):
            raise InputError(
                "data.partition.scheme = 'drawn': nodes share images, but the strategy pools all images; "
                "use another scheme."
            )
        return self.train_parts.values

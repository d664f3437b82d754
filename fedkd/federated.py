"""The federation's data: the pool of training images, who holds which, each node's test images, and the public set."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .config import DataConfig, RealSites, SetConfig, SetsConfig
from .datasets import Dataset, Images, load
from .errors import InputError
from .partitions import Drawn, Pool, allocate, split
from .streams import numpy_stream


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length in two arrays, so that a million nodes are two objects."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> Ragged:
        """Return these rows."""
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


@dataclass(frozen=True)
class DrawnTests:
    """Each node's test images, drawn whenever they are asked for."""

    train_parts: Drawn
    train: Pool
    test: Pool
    size: int
    seed: int

    def __len__(self) -> int:
        return len(self.train_parts)

    def __getitem__(self, node: int) -> np.ndarray:
        part = self.train_parts[node]
        prior = np.bincount(self.train.labels[part], minlength=len(self.train.classes)) / len(part)
        return _node_test(self.train, part, prior, self.test, self.size, numpy_stream(self.seed, 0, node, "node-test"))


@dataclass(frozen=True)
class FederatedData:
    """All data of a federation. `train_parts[i]` and `test_parts[i]` are node i's positions in `train` and `test`."""

    train: Images
    test: Images
    train_parts: Ragged | Drawn
    test_parts: Ragged | DrawnTests
    node_domains: np.ndarray  # of each node: the domain of most of its images
    priors: np.ndarray | None  # nodes x classes: each node's label distribution, as its test images follow it, if known
    public: Images | None
    validation: Images | None  # labelled images of the server's own
    public_labelled: bool
    classes: tuple[str, ...]  # that models tell apart
    node_classes: tuple[str, ...]  # the first of them: without the public set's own
    domain_names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def clients(self) -> int:
        """Return the number of nodes."""
        return len(self.train_parts)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height, width."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def train_of(self, node: int) -> Images:
        """Return a node's training images."""
        return self.train.take(self.train_parts[node])

    def test_of(self, node: int) -> Images:
        """Return a node's test images, which follow its own label distribution."""
        return self.test.take(self.test_parts[node])

    def label_counts(self) -> np.ndarray:
        """Return the table of training images, nodes x their classes."""
        counts = np.zeros((self.clients, len(self.node_classes)), np.int64)
        for node in range(self.clients):
            counts[node] = np.bincount(self.train.labels[self.train_parts[node]], minlength=len(self.node_classes))
        return counts

    @cached_property
    def fingerprint(self) -> str:
        """Return a word that tells whether two federations have the same images, labels and partition."""
        digest = hashlib.blake2b(digest_size=12)
        for images in (self.train, self.test, self.public, self.validation):
            if images is not None:
                digest.update(np.ascontiguousarray(images.images).data)
                digest.update(np.ascontiguousarray(images.labels).data)
        for parts in (self.train_parts, self.test_parts):
            if isinstance(parts, Ragged):
                digest.update(parts.values.data)
                digest.update(np.ascontiguousarray(parts.offsets).data)
            else:  # drawn whenever they are asked for; the first nodes stand for all
                for node in range(min(len(parts), 10)):
                    digest.update(np.ascontiguousarray(parts[node]).data)
        return digest.hexdigest()

    def pooled(self) -> np.ndarray:
        """Return the positions of all nodes' training images. Raises InputError where nodes share them."""
        if isinstance(self.train_parts, Drawn):
            raise InputError("data.partition.scheme = 'drawn': nodes share images, and the strategy pools them.")
        return self.train_parts.values


def federate(config: DataConfig, seed: int) -> FederatedData:
    """Load the named sets, take the public set out, partition the rest, and draw each node's test images.

    The same config and seed give the same federation everywhere. Raises InputError for whatever cannot be met.
    """
    if config.sites is not None:
        return _without_images(config, config.sites, seed)
    assert config.partition is not None
    seed = config.partition.seed if config.partition.seed is not None else seed
    sets = [_first_of_each(_load(config, name), config) for name in config.set_names]
    first = sets[0]
    for name, other in zip(config.set_names, sets, strict=True):
        if other.train.images.shape[1:] != first.train.images.shape[1:]:
            shapes = " and ".join("x".join(map(str, s.train.images.shape[1:])) for s in (first, other))
            raise InputError(
                f"data.names: {config.set_names[0]} and {name} have images of {shapes} (channels x height x width); "
                "set data.size and data.channels to bring them to one shape."
            )
        folders = name.startswith("images:") and config.set_names[0].startswith("images:")
        if folders and other.classes != first.classes:
            raise InputError(
                f"data.names: {config.set_names[0]} has the classes {', '.join(first.classes)} and {name} "
                f"{', '.join(other.classes)}; folders of one federation have the same class folders."
            )
        if len(other.classes) != len(first.classes):
            raise InputError(
                f"data.names: {config.set_names[0]} has {len(first.classes)} classes and {name} {len(other.classes)}; "
                "the domains of one federation share their classes."
            )
    train, domains = _pool([s.train for s in sets])
    test, test_domains = _pool([s.test for s in sets])

    public, kept, classes = _public(config, train, seed, first.classes)
    train, domains = train.take(kept), domains[kept]
    validation, kept = _validation(config, train, seed)
    train, domains = train.take(kept), domains[kept]
    pool = Pool(train.labels, domains, first.classes, tuple(config.set_names))
    table = {"scheme": config.partition.scheme, "minimum": config.partition.minimum}
    rng = numpy_stream(seed, 0, "server", "partition")
    parts, priors = split(pool, table | (config.partition.model_extra or {}), rng)
    test_pool = Pool(test.labels, test_domains, first.classes, tuple(config.set_names))
    test_parts: Ragged | DrawnTests
    if isinstance(parts, Drawn):
        node_domains, test_parts = (
            np.zeros(len(parts), np.int8),
            DrawnTests(parts, pool, test_pool, config.node_test, seed),
        )
    else:
        if priors is None:
            width = len(first.classes)
            priors = np.stack([np.bincount(train.labels[p], minlength=width) / len(p) for p in parts])
        node_domains = np.array([np.bincount(domains[part]).argmax() for part in parts])
        test_parts = Ragged.of(
            [
                _node_test(pool, part, prior, test_pool, config.node_test, numpy_stream(seed, 0, node, "node-test"))
                for node, (part, prior) in enumerate(zip(parts, priors, strict=True))
            ]
        )
        priors = np.pad(priors, ((0, 0), (0, len(classes) - len(first.classes))))
    mean, deviation = _statistics(config, sets)
    return FederatedData(
        train=train,
        test=test,
        train_parts=parts if isinstance(parts, Drawn) else Ragged.of(parts),
        test_parts=test_parts,
        node_domains=node_domains,
        priors=priors,
        public=public,
        validation=validation,
        public_labelled=bool(config.public and config.public.labelled),
        classes=classes,
        node_classes=first.classes,
        domain_names=tuple(config.set_names),
        mean=mean,
        deviation=deviation,
    )


@dataclass(frozen=True)
class SiteData(FederatedData):
    """What a real site holds: its own images, whatever its number, and the public set."""

    own_test: Images

    def train_of(self, node: int) -> Images:
        """Return the site's training images."""
        return self.train

    def test_of(self, node: int) -> Images:
        """Return the site's test images."""
        return self.own_test


def site_data(config: DataConfig, name: str, seed: int) -> SiteData:
    """Return the data of a real site whose own images are those of a named set. Raises InputError where they are wrong.

    Whether they fit the federation is for the server to check, at the first contact.
    """
    own = _in_classes(_first_of_each(_load(config, name), config), config.sites)
    if len(own.train.labels) == 0 or len(own.test.labels) == 0:
        raise InputError(f"data = {name!r}: a site needs training and test images.")
    public, _, classes = _public(config, own.train, seed, own.classes)
    mean, deviation = _statistics(config, [_neutral(own)])  # all sites and the server normalise alike
    return SiteData(
        train=own.train,
        test=own.test.take(np.empty(0, np.int64)),
        train_parts=Ragged.of([]),
        test_parts=Ragged.of([]),
        node_domains=np.empty(0, np.int64),
        priors=None,
        public=public,
        validation=None,
        public_labelled=bool(config.public and config.public.labelled),
        classes=classes,
        node_classes=own.classes,
        domain_names=("sites",),
        mean=mean,
        deviation=deviation,
        own_test=own.test,
    )


def _neutral(dataset: Dataset) -> Dataset:
    """Return a set without pixel statistics of its own."""
    half = (0.5,) * dataset.train.images.shape[1]
    return dataclasses.replace(dataset, mean=half, deviation=half)


def _in_classes(own: Dataset, sites: RealSites | None) -> Dataset:
    """Return a site's set with the federation's classes; a site need not have images of each, but names them alike."""
    if sites is None or not set(own.classes) <= set(sites.classes):
        return own
    labels = np.array([sites.classes.index(name) for name in own.classes])
    train, test = (Images(part.images, labels[part.labels]) for part in (own.train, own.test))
    return dataclasses.replace(own, train=train, test=test, classes=tuple(sites.classes))


def _without_images(config: DataConfig, sites: RealSites, seed: int) -> FederatedData:
    """Return what the server knows of a federation of real sites: the form of images, and what it holds itself."""
    empty = Images(np.empty((0, *sites.shape), np.uint8), np.empty(0, np.int64))
    test, validation = empty, None
    if sites.server is not None:
        held = _load(config, sites.server)
        _refuse_unfit("data.sites.server", sites, held.classes, held.train.images.shape[1:])
        test, (validation, _) = held.test, _validation(config, held.train, seed)
    public, _, classes = _public(config, empty, seed, tuple(sites.classes))
    mean, deviation = _statistics(config, [_neutral(Dataset(empty, empty, tuple(sites.classes)))])
    return FederatedData(
        train=empty,
        test=test,
        train_parts=Ragged.of([np.empty(0, np.int64)] * sites.count),
        test_parts=Ragged.of([np.empty(0, np.int64)] * sites.count),
        node_domains=np.zeros(sites.count, np.int64),
        priors=None,
        public=public,
        validation=validation,
        public_labelled=bool(config.public and config.public.labelled),
        classes=classes,
        node_classes=tuple(sites.classes),
        domain_names=("sites",),
        mean=mean,
        deviation=deviation,
    )


def write_sets(data: FederatedData, folder: Path) -> list[Path]:
    """Write each node's images as a set of its own, `node-<n>.npz`, for trials with real sites; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for node in range(data.clients):
        arrays: dict[str, Any] = {"classes": np.array(data.node_classes)}
        for part, images in (("train", data.train_of(node)), ("test", data.test_of(node))):
            arrays[f"x_{part}"], arrays[f"y_{part}"] = images.images.transpose(0, 2, 3, 1), images.labels
        paths.append(folder / f"node-{node}.npz")
        np.savez_compressed(paths[-1], **arrays)
    return paths


def misfit(
    sites: RealSites, classes: tuple[str, ...], shape: tuple[int, ...], wanted: tuple[str, ...] | None = None
) -> str | None:
    """Return what is wrong with images of these classes and this shape for a federation of real sites, if anything.

    `wanted`: all classes of the federation, where its public set has classes of its own.
    """
    wanted = wanted or tuple(sites.classes)
    if classes != wanted:
        return f"its classes are {_some(classes)}; data.sites.classes are {_some(wanted)}"
    if shape != tuple(sites.shape):
        have, want = ("x".join(map(str, one)) for one in (shape, sites.shape))
        return f"its images are {have} (channels x height x width), data.sites.shape is {want}"
    return None


def _refuse_unfit(key: str, sites: RealSites, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if (reason := misfit(sites, classes, shape)) is not None:
        raise InputError(f"{key}: {reason}; data.size and data.channels bring images to one shape.")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")


def named_set(config: SetConfig) -> Dataset:
    """Return one named set in the form that a config asks for, with the statistics to normalise it by."""
    dataset = _first_of_each(_load(config, config.name), config)
    mean, deviation = _statistics(config, [dataset])
    return dataclasses.replace(dataset, mean=mean, deviation=deviation)


def _load(config: SetsConfig, name: str) -> Dataset:
    return load(name, config.folder, download=config.download, size=config.size, channels=config.channels)


def _first_of_each(dataset: Dataset, config: SetsConfig) -> Dataset:
    """Return the set with the first images of each class only, where `data` says so."""

    def cut(images: Images, limit: int | None) -> Images:
        if limit is None:
            return images
        members = [np.flatnonzero(images.labels == label)[:limit] for label in range(len(dataset.classes))]
        return images.take(np.sort(np.concatenate(members)))

    train, test = cut(dataset.train, config.train_per_class), cut(dataset.test, config.test_per_class)
    return dataclasses.replace(dataset, train=train, test=test)


def _statistics(config: SetsConfig, sets: list[Dataset]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of pixels that images are normalised by, a channel."""
    channels = sets[0].train.images.shape[1]
    for key in ("mean", "deviation"):
        given = getattr(config, key)
        if given is not None and len(given) != channels:
            raise InputError(f"data.{key} = {given}: the images have {channels} channels, give a number for each.")
    same = len({(s.mean, s.deviation) for s in sets}) == 1
    neutral = (0.5,) * channels
    mean, deviation = (sets[0].mean, sets[0].deviation) if same else (neutral, neutral)
    return tuple(config.mean or mean), tuple(config.deviation or deviation)


def _pool(parts: list[Images]) -> tuple[Images, np.ndarray]:
    if len(parts) == 1:
        return parts[0], np.zeros(len(parts[0].labels), np.int64)
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Images(images, labels), np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])


def _public(
    config: DataConfig, train: Images, seed: int, classes: tuple[str, ...]
) -> tuple[Images | None, np.ndarray, tuple[str, ...]]:
    """Return the public set, the positions of the training images that stay with the nodes, and all classes.

    Classes of the public set's own come after the nodes', as in FedMD's experiments (whose code has them before).
    """
    everything = np.arange(len(train.labels))
    if config.public is None:
        return None, everything, classes
    source, first_class = train, 0
    if config.public.name is not None:
        other = _load(config, config.public.name)
        source = other.train
        if source.images.shape[1:] != train.images.shape[1:]:
            raise InputError(
                f"data.public.name = {config.public.name!r}: its images are {source.images.shape[1:]}, the others "
                f"{train.images.shape[1:]} (channels, height, width); set data.size and data.channels."
            )
        if config.public.own_classes:
            first_class = len(classes)
            short = Path(config.public.name.removeprefix("npz:").removeprefix("images:")).name  # the same on all sites
            classes += tuple(f"{short}:{name}" for name in other.classes)
        elif config.public.labelled and len(other.classes) != len(classes):
            raise InputError(
                f"data.public.labelled: {config.public.name!r} has {len(other.classes)} classes, the federation "
                f"{len(classes)}; own_classes = true gives them outputs of their own."
            )
    size = config.public.size
    limit = len(source.labels) if config.public.name is not None else len(source.labels) - 1
    if size > limit:
        raise InputError(f"data.public.size = {size}: there are only {limit} images to take it from.")
    rng = numpy_stream(seed, 0, "server", "public")
    if config.public.balanced:
        taken = _balanced(source.labels, size, rng)
    else:
        taken = rng.permutation(len(source.labels))[:size]
    public = source.take(rng.permutation(taken))
    kept = everything if config.public.name is not None else np.setdiff1d(everything, taken)
    return Images(public.images, public.labels + first_class), kept, classes


def _validation(config: DataConfig, train: Images, seed: int) -> tuple[Images | None, np.ndarray]:
    """Return the server's labelled images, and the positions of the training images that stay with the nodes."""
    everything = np.arange(len(train.labels))
    if config.validation is None:
        return None, everything
    if config.validation.size >= len(everything):
        raise InputError(
            f"data.validation.size = {config.validation.size}: there are only {len(everything)} images to take it from."
        )
    taken = _balanced(train.labels, config.validation.size, numpy_stream(seed, 0, "server", "validation"))
    return train.take(taken), np.setdiff1d(everything, taken)


def _balanced(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw positions, the same number of each class as far as the images go."""
    order = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    counts = allocate(np.full(len(order), 1 / len(order)), size, np.array([len(o) for o in order]))
    return np.concatenate([o[:c] for o, c in zip(order, counts, strict=True)])


def _node_test(
    pool: Pool, part: np.ndarray, prior: np.ndarray, test: Pool, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw a node's test images, without replacement: classes by its prior, each by domain like its training images.

    A class that it holds no image of comes from its domains in the shares of all its images. Where the test set has too
    few of a class, the whole draw shrinks, so that the proportions stay the node's own.
    """
    classes, domains = len(test.classes), len(test.domain_names)
    held = np.bincount(pool.domains[part] * classes + pool.labels[part], minlength=classes * domains)
    held = held.reshape(domains, classes).astype(np.float64)
    overall = held.sum(1, keepdims=True) / len(part)
    per_class = held.sum(0, keepdims=True)
    within = np.where(per_class > 0, held / np.maximum(per_class, 1), overall)
    wanted = (within * prior).ravel()
    cells = np.flatnonzero(wanted > 0)
    members = [np.flatnonzero(test.domains * classes + test.labels == cell) for cell in cells]
    available = np.array([len(m) for m in members])
    shares = np.where(available > 0, wanted[cells], 0)
    prior = shares / max(shares.sum(), np.finfo(np.float64).tiny)
    if not prior.any():
        raise InputError("data: the test set has no image of any class that one of the nodes trains on.")
    fits = int(min(np.floor(available[prior > 0] / prior[prior > 0]).min(), size))
    chosen = allocate(prior, max(fits, 1), available)
    return np.sort(np.concatenate([rng.permutation(m)[:c] for m, c in zip(members, chosen, strict=True)]))

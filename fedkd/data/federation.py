"""Makes the data of a federation: loads the sets, removes the public set, partitions the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from ..streams import numpy_stream
from .classes import same_classes
from .federated_data import FederatedData, Ragged
from .images import Images
from .named_sets import first_of_each, images_fingerprint, load_set, pixel_statistics
from .node_tests import DrawnTests, draw_node_test
from .partitions import Drawn, Pool, split
from .public_set import take_public_set, take_validation
from .site_data import without_images


def federate(config: DataConfig, seed: int) -> FederatedData:
    """Load the named sets, remove the public set, partition the rest, and draw each node's test images.

    The same config and seed give the same federation on every machine. Raises InputError if the config is impossible.
    """
    if config.sites is not None:
        return without_images(config, config.sites, seed)
    assert config.partition is not None
    seed = config.partition.seed if config.partition.seed is not None else seed
    sets = [first_of_each(load_set(config, name), config) for name in config.set_names]
    first = sets[0]
    for name, other in zip(config.set_names, sets, strict=True):
        if other.train.images.shape[1:] != first.train.images.shape[1:]:
            shapes = " and ".join("x".join(map(str, s.train.images.shape[1:])) for s in (first, other))
            raise InputError(
                f"data.names: {config.set_names[0]} and {name} have images of {shapes} (channels x height x width); "
                "set data.size and data.channels to give them the same shape."
            )
    sets = same_classes(sets, config.set_names)
    first = sets[0]
    if len(first.classes) < 2:
        raise InputError(
            f"data: {config.set_names[0]} has only one class, {first.classes[0]}; it needs at least two. If that is a "
            "folder around the class folders, name it in data.name."
        )
    train, domains = _pool([s.train for s in sets])
    test, test_domains = _pool([s.test for s in sets])

    public, kept, classes = take_public_set(config, train, seed, first.classes)
    train, domains = train.take(kept), domains[kept]
    validation, kept = take_validation(config, train, seed)
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
                draw_node_test(pool, part, prior, test_pool, config.node_test, numpy_stream(seed, 0, node, "node-test"))
                for node, (part, prior) in enumerate(zip(parts, priors, strict=True))
            ]
        )
        priors = np.pad(priors, ((0, 0), (0, len(classes) - len(first.classes))))
    mean, deviation = pixel_statistics(config, sets)
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
        images_fingerprint=images_fingerprint(sets),
    )


def write_sets(data: FederatedData, folder: Path) -> list[Path]:
    """Write each node's images as a separate set, `node-<n>.npz`, for tests with real sites; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for node in range(data.clients):
        arrays: dict[str, Any] = {"classes": np.array(data.node_classes)}
        for part, images in (("train", data.train_of(node)), ("test", data.test_of(node))):
            arrays[f"x_{part}"], arrays[f"y_{part}"] = images.images.transpose(0, 2, 3, 1), images.labels
        paths.append(folder / f"node-{node}.npz")
        np.savez_compressed(paths[-1], **arrays)
    return paths


def _pool(parts: list[Images]) -> tuple[Images, np.ndarray]:
    if len(parts) == 1:
        return parts[0], np.zeros(len(parts[0].labels), np.int64)
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    return Images(images, labels), np.repeat(np.arange(len(parts)), [len(part.labels) for part in parts])

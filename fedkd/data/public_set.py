"""The public set and the server's validation images: they are removed before the rest is partitioned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import InputError, some
from ..streams import numpy_stream
from .alignment import in_kinds_of, in_spec
from .classes import in_classes
from .named_sets import load_set
from .samples import Samples
from .spec import DataSpec
from .splits import allocate
from .strata import strata_of


def take_public_set(
    config: DataConfig, train: Samples, spec: DataSpec, seed: int, classes: tuple[str, ...]
) -> tuple[Samples | None, np.ndarray, tuple[str, ...]]:
    """Return the public set, the positions of the training images that stay with the nodes, and all classes.

    `spec`: what the training samples are. The public set's own classes come after the nodes' classes, as in FedMD's
    experiments (in its code they come first).
    """
    everything = np.arange(len(train.labels))
    if config.public is None:
        return None, everything, classes
    if config.public.own_classes and spec.task != "classification":
        raise InputError(f"data.public.own_classes = true: the task is {spec.task}, which has no classes.")
    source, first_class = train, 0
    if config.public.name is not None:
        other = in_kinds_of(load_set(config, config.public.name), spec)
        if {spec.kind, other.about.kind} != {"image"}:
            if differences := spec.misfit(other.about):
                raise InputError(
                    f"data.public.name = {config.public.name!r}: it does not fit the nodes' {spec.noun(2)}: "
                    f"{some(differences, 5)}."
                )
            other = in_spec(other, spec)
        source = other.train
        if spec.kind == "image" and source.inputs.shape[1:] != train.inputs.shape[1:]:
            raise InputError(
                f"data.public.name = {config.public.name!r}: its images are {source.inputs.shape[1:]}, the others "
                f"{train.inputs.shape[1:]} (channels, height, width); set data.size and data.channels."
            )
        if config.public.own_classes:
            first_class = len(classes)
            short = Path(config.public.name.removeprefix("npz:").removeprefix("images:")).name  # equal on all sites
            classes += tuple(f"{short}:{name}" for name in other.classes)
        elif config.public.labelled:
            key = f"data.public.name = {config.public.name!r}: it"
            fix = "set own_classes = true to give its classes separate outputs"
            source = in_classes(other, classes, key, "the nodes", fix).train
    size = config.public.size
    limit = len(source.labels) if config.public.name is not None else len(source.labels) - 1
    if size > limit:
        raise InputError(f"data.public.size = {size}: there are only {limit} images to take it from.")
    rng = numpy_stream(seed, 0, "server", "public")
    if config.public.balanced:
        taken = _balanced(strata_of(source.labels, spec.task, classes).of(source.labels), size, rng)
    else:
        taken = rng.permutation(len(source.labels))[:size]
    public = source.take(rng.permutation(taken))
    kept = everything if config.public.name is not None else np.setdiff1d(everything, taken)
    return Samples(public.inputs, public.labels + first_class), kept, classes


def take_validation(
    config: DataConfig, train: Samples, spec: DataSpec, seed: int, classes: tuple[str, ...]
) -> tuple[Samples | None, np.ndarray]:
    """Return the server's labelled images, and the positions of the training images that stay with the nodes."""
    everything = np.arange(len(train.labels))
    if config.validation is None:
        return None, everything
    if config.validation.size >= len(everything):
        raise InputError(
            f"data.validation.size = {config.validation.size}: there are only {len(everything)} images to take it from."
        )
    strata = strata_of(train.labels, spec.task, classes).of(train.labels)
    taken = _balanced(strata, config.validation.size, numpy_stream(seed, 0, "server", "validation"))
    return train.take(taken), np.setdiff1d(everything, taken)


def _balanced(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw positions, the same number of each class if there are enough images."""
    order = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    counts = allocate(np.full(len(order), 1 / len(order)), size, np.array([len(o) for o in order]))
    return np.concatenate([o[:c] for o, c in zip(order, counts, strict=True)])

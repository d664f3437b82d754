"""Named sets in the form that a config asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import SetConfig, SetsConfig
from ..errors import InputError
from .codec import Codec, fit
from .data_files import from_file
from .datasets import load
from .federated_data import fingerprint_of
from .samples import Dataset, Samples, checked, reshape
from .spec import DataSpec
from .tasks import target_moments

FILE = "file:"  # before the path of a file that `data.names` or `data.public.name` names


def named_set(config: SetConfig) -> tuple[Dataset, Codec]:
    """Return one named set in the form that a config asks for, and the codec of its training samples."""
    dataset = first_of_each(load_set(config, config.name), config)
    codec = codec_of(config, [dataset], dataset.train, np.arange(len(dataset.train.labels)))
    return dataset, codec


def load_set(config: SetsConfig, name: str) -> Dataset:
    """Return a named set with the size and channels of the config; `data.file` and `file:<path>` are files."""
    if name == getattr(config, "file", None) or name.startswith(FILE):
        path = Path(name.removeprefix(FILE)).expanduser()
        path = path if path.exists() else config.folder / path
        dataset = checked(from_file(path, config), name, "data.file")
        return reshape(dataset, name, config.size, config.channels)
    dataset = load(
        name, config.folder, download=config.download, size=config.size, channels=config.channels, config=config
    )
    if dataset.about.task != config.task:
        raise InputError(f"data.task = {config.task!r}: the set {name!r} is for {dataset.about.task}.")
    return dataset


def first_of_each(dataset: Dataset, config: SetsConfig) -> Dataset:
    """Return the set with only the first images of each class, if `data` limits them."""

    def chosen(labels: np.ndarray, limit: int | None) -> np.ndarray:
        if limit is None:
            return np.arange(len(labels))
        members = [np.flatnonzero(labels == label)[:limit] for label in range(len(dataset.classes))]
        return np.sort(np.concatenate(members))

    if config.train_per_class is None and config.test_per_class is None:
        return dataset
    train, test = dataset.train, dataset.test
    first, first_tests = chosen(train.labels, config.train_per_class), chosen(test.labels, config.test_per_class)
    nodes = None if dataset.nodes is None else (dataset.nodes[0][first], dataset.nodes[1][first_tests])
    held = None if dataset.validation is None else dataset.validation[first]
    train, test = train.take(first), test.take(first_tests)
    return dataclasses.replace(dataset, train=train, test=test, nodes=nodes, validation=held)


def codec_of(config: SetsConfig, sets: Sequence[Dataset], pool: Samples, rows: np.ndarray) -> Codec:
    """Return the codec of a federation with these sets, fitted on its nodes' training samples, `rows` of `pool`.

    Targets get mean 0 and deviation 1. The mean and deviation of images are those of the config, or else those that the
    sets name; of sets with unlike ones, 0.5. Otherwise they are measured. Raises InputError for options that do not fit
    the samples.
    """
    mean, deviation = target_moments(pool.labels[rows], sets[0].about)
    codec = _codec_of_inputs(config, sets, pool.inputs, rows)
    return dataclasses.replace(codec, target_mean=mean, target_deviation=deviation)


def _codec_of_inputs(config: SetsConfig, sets: Sequence[Dataset], pool: np.ndarray, rows: np.ndarray) -> Codec:
    spec = sets[0].about
    given = {key: getattr(config, key) for key in ("mean", "deviation") if getattr(config, key) is not None}
    if spec.kind != "image":
        for key in given:
            raise InputError(f"data.{key} is for images; the samples are {spec.noun(2)}.")
        return fit(spec, pool, rows, **encoding_of(config, spec))
    channels = spec.shape[0]
    for key, numbers in given.items():
        if len(numbers) != channels:
            raise InputError(f"data.{key} = {numbers}: the images have {channels} channels; give a number for each.")
    named = {(s.mean, s.deviation) for s in sets}
    known: dict[str, Sequence[float] | None] = {"mean": None, "deviation": None}
    if len(named) > 1:
        known = dict.fromkeys(known, (0.5,) * channels)
    elif sets[0].mean is not None:
        known = {"mean": sets[0].mean, "deviation": sets[0].deviation}
    known |= given
    if list(known.values()).count(None) == 1:
        measured = fit(spec, pool, rows)
        known = {key: value or getattr(measured, key).tolist() for key, value in known.items()}
    if any(len(value) != channels for value in known.values() if value is not None):
        known = {key: tuple(value or ())[:1] * channels for key, value in known.items()}
    return fit(spec, pool, rows, scaling=config.scaling, mean=known["mean"], deviation=known["deviation"])


def encoding_of(config: SetsConfig, spec: DataSpec) -> dict[str, Any]:
    """Return the options of `fit` that a config gives. Raises InputError for one of another kind of samples."""
    by_kind = {"table": ("mean", "median", "indicator", "refuse"), "series": ("refuse", "zero", "hold")}
    valid = by_kind.get(spec.kind, ())
    if config.missing is not None and config.missing not in valid:
        fits = f"valid are {', '.join(valid)}" if valid else "it is for tables and series"
        raise InputError(f"data.missing = {config.missing!r}: the samples are {spec.noun(2)}; {fits}.")
    chosen: dict[str, Any] = {"scaling": config.scaling}
    if spec.kind == "table":
        chosen |= {"missing": config.missing or "mean", "min_count": config.min_count or 1}
    if spec.kind == "tokens":
        chosen["min_count"] = config.min_count or 2
    return chosen


def images_fingerprint(sets: Sequence[Dataset]) -> str:
    """Return a hash that is equal for the same images, labels and class names, whatever the seed draws from them."""
    names = [np.frombuffer("\n".join(one.classes).encode(), np.uint8) for one in sets]
    names += [np.frombuffer(one.spec.canonical().encode(), np.uint8) for one in sets if one.spec is not None]
    arrays = [array for one in sets for part in (one.train, one.test) for array in (part.inputs, part.labels)]
    return fingerprint_of([*names, *arrays])

"""Named sets in the form that a config asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..config import SetConfig, SetsConfig
from ..errors import InputError
from .datasets import load
from .federated_data import fingerprint_of
from .images import Dataset, Images


def named_set(config: SetConfig) -> Dataset:
    """Return one named set in the form that a config asks for, with the statistics for its normalisation."""
    dataset = first_of_each(load_set(config, config.name), config)
    mean, deviation = pixel_statistics(config, [dataset])
    return dataclasses.replace(dataset, mean=mean, deviation=deviation)


def load_set(config: SetsConfig, name: str) -> Dataset:
    """Return a named set with the size and channels of the config."""
    return load(name, config.folder, download=config.download, size=config.size, channels=config.channels)


def first_of_each(dataset: Dataset, config: SetsConfig) -> Dataset:
    """Return the set with only the first images of each class, if `data` limits them."""

    def cut(images: Images, limit: int | None) -> Images:
        if limit is None:
            return images
        members = [np.flatnonzero(images.labels == label)[:limit] for label in range(len(dataset.classes))]
        return images.take(np.sort(np.concatenate(members)))

    train, test = cut(dataset.train, config.train_per_class), cut(dataset.test, config.test_per_class)
    return dataclasses.replace(dataset, train=train, test=test)


def pixel_statistics(config: SetsConfig, sets: list[Dataset]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of pixels for the normalisation, one value per channel."""
    channels = sets[0].train.images.shape[1]
    for key in ("mean", "deviation"):
        given = getattr(config, key)
        if given is not None and len(given) != channels:
            raise InputError(f"data.{key} = {given}: the images have {channels} channels; give a number for each.")
    same = len({(s.mean, s.deviation) for s in sets}) == 1
    neutral = (0.5,) * channels
    mean, deviation = (sets[0].mean, sets[0].deviation) if same else (neutral, neutral)
    return tuple(config.mean or mean), tuple(config.deviation or deviation)


def images_fingerprint(sets: Sequence[Dataset]) -> str:
    """Return a hash that is equal for the same images, labels and class names, whatever the seed draws from them."""
    names = [np.frombuffer("\n".join(one.classes).encode(), np.uint8) for one in sets]
    arrays = [array for one in sets for part in (one.train, one.test) for array in (part.images, part.labels)]
    return fingerprint_of([*names, *arrays])

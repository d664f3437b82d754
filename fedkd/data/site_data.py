"""The data of real sites: the site's data, the server's knowledge of them, and the check that both fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ..config import DataConfig, RealSites
from ..errors import InputError, some
from .classes import in_classes
from .federated_data import FederatedData, Ragged
from .images import Dataset, Images
from .named_sets import first_of_each, load_set, pixel_statistics
from .public_set import take_public_set, take_validation


@dataclass(frozen=True)
class SiteData(FederatedData):
    """The data of a real site: its own images, for any node number, and the public set."""

    own_test: Images

    def train_of(self, node: int) -> Images:
        """Return the site's training images."""
        return self.train

    def test_of(self, node: int) -> Images:
        """Return the site's test images."""
        return self.own_test


def site_data(config: DataConfig, name: str, seed: int) -> SiteData:
    """Return the data of a real site whose own images are a named set. Raises InputError if they are wrong.

    The server checks at the first contact whether they fit the federation.
    """
    own = first_of_each(load_set(config, name), config)
    if config.sites is not None and set(own.classes) <= set(config.sites.classes):  # else the server refuses the site
        own = _of_federation(own, config.sites, f"data = {name!r}")
    if len(own.train.labels) == 0 or len(own.test.labels) == 0:
        raise InputError(f"data = {name!r}: a site needs training and test images.")
    public, _, classes = take_public_set(config, own.train, seed, own.classes)
    mean, deviation = pixel_statistics(config, [neutral(own)])  # all sites and the server must normalise equally
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


def neutral(dataset: Dataset) -> Dataset:
    """Return the set without its own pixel statistics."""
    half = (0.5,) * dataset.train.images.shape[1]
    return dataclasses.replace(dataset, mean=half, deviation=half)


def _of_federation(own: Dataset, sites: RealSites, key: str) -> Dataset:
    """Return a set with the federation's classes. It may lack some of them, but must use the same names."""
    fix = "rename its classes, or add them to data.sites.classes at the server and at all sites"
    return in_classes(own, sites.classes, key, "data.sites.classes", fix)


def without_images(config: DataConfig, sites: RealSites, seed: int) -> FederatedData:
    """Return the server's data in a federation of real sites: the form of the images, and its own images."""
    empty = Images(np.empty((0, *sites.shape), np.uint8), np.empty(0, np.int64))
    test, validation = empty, None
    if sites.server is not None:
        held = _of_federation(load_set(config, sites.server), sites, f"data.sites.server = {sites.server!r}")
        _refuse_unfit("data.sites.server", sites, held.classes, held.train.images.shape[1:])
        test, (validation, _) = held.test, take_validation(config, held.train, seed)
    public, _, classes = take_public_set(config, empty, seed, tuple(sites.classes))
    mean, deviation = pixel_statistics(config, [neutral(Dataset(empty, empty, tuple(sites.classes)))])
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


def misfit(
    sites: RealSites, classes: tuple[str, ...], shape: tuple[int, ...], wanted: tuple[str, ...] | None = None
) -> str | None:
    """Return why images of these classes and this shape do not fit a federation of real sites, or None if they fit.

    `wanted`: all classes of the federation, if its public set has its own classes.
    """
    wanted = wanted or tuple(sites.classes)
    if classes != wanted:
        return f"its classes are {some(classes)}; data.sites.classes are {some(wanted)}"
    if shape != tuple(sites.shape):
        have, want = ("x".join(map(str, one)) for one in (shape, sites.shape))
        return f"its images are {have} (channels x height x width), data.sites.shape is {want}"
    return None


def _refuse_unfit(key: str, sites: RealSites, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if (reason := misfit(sites, classes, shape)) is not None:
        raise InputError(f"{key}: {reason}; set data.size and data.channels to give images the same shape.")

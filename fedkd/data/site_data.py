"""The data of real sites: the site's data, the server's knowledge of them, and the check that both fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from ..config import DataConfig, RealSites, read_table
from ..errors import InputError, on_one_line, some, unknown
from .agreement import Agreement, read_agreement
from .alignment import in_kinds_of, in_spec
from .classes import in_classes
from .codec import MOST_UNSEEN, Codec, refuse_missing
from .federated_data import FederatedData, Ragged
from .named_sets import FILE, codec_of, first_of_each, load_set
from .node_validation import held_out, named_rows
from .public_set import take_public_set, take_validation
from .samples import LARGEST, RAW_TYPES, Dataset, Samples
from .spec import DataSpec
from .statistics import plan_of
from .tasks import in_task
from .unknown_words import unknown_at_site

_OF_A_FILE = (
    "label", "text", "node", "split", "test", "time", "gap", "drop", "columns", "units", "drop_unlabelled", "kind",
    "max_categories",
)  # fmt: skip
_log = logging.getLogger("fedkd")


@dataclass(frozen=True)
class SiteData(FederatedData):
    """The data of a real site: its own samples, for any node number, and the public set.

    `described`: what its own samples are. If that is not what the federation has, the server refuses the site.
    """

    own_test: Samples
    own_validation: Samples | None  # that its file names
    share: float | None  # of its training samples, for validation
    seed: int
    described: DataSpec

    def train_of(self, node: int) -> Samples:
        """Return the site's training samples."""
        return self.train if self.share is None else self.train.take(~self._held_out(self.share, node))

    def validation_of(self, node: int) -> Samples | None:
        """Return the site's validation samples: those that its file names, or else drawn ones."""
        return self.own_validation if self.share is None else self.train.take(self._held_out(self.share, node))

    def _held_out(self, share: float, node: int) -> np.ndarray:
        return held_out(self._bins.of(self.train.labels), share, self.seed, node)

    def test_of(self, node: int) -> Samples:
        """Return the site's test samples."""
        return self.own_test

    def _every(self) -> list[Samples]:
        own = [] if self.spec.misfit(self.described) else [self.train, self.own_test, self.own_validation]
        return [one for one in (*own, self.public) if one is not None]


def site_data(config: DataConfig, name: str, seed: int, common: Agreement | None = None) -> SiteData:
    """Return the data of a real site. `name`: a named set, `file:<path>`, or a TOML file with `file` and its columns.

    `common`: what the sites have agreed on, if the file `data.sites.spec` has no codec. Raises InputError if the data
    are wrong. The server checks at the first contact whether they fit the federation.
    """
    sites = config.sites
    assert sites is not None
    agreed = None if sites.spec is None else common or read_agreement(config)
    if agreed is not None:
        config = _as_described(config, agreed.codec.spec)
    classes = tuple(sites.classes or ()) if agreed is None else agreed.classes
    own = load_set(config, name) if agreed is None else _read_own(config, name, agreed.codec.spec)
    own = first_of_each(own, config)
    if agreed is None and own.about.kind != "image":
        raise InputError(f"data = {name!r}: data.sites.shape is for images; set data.sites.spec in its place.")
    if set(own.classes) <= set(classes) and own.about.task == config.task:  # else the server refuses the site
        own = _of_federation(own, classes, f"data = {name!r}", sites)
    if len(own.train.labels) == 0 or len(own.test.labels) == 0:
        raise InputError(f"data = {name!r}: a site needs training and test {own.about.noun(2)}.")
    described, notes = own.about, own.notes
    if agreed is None:
        codec = _neutral_codec(config, own.about)  # all sites and the server must encode equally
        train, spec = own.train, own.about
    else:
        codec = agreed.codec
        train, spec = _empty(codec.spec), codec.spec
        if not spec.misfit(described):
            fitted = in_spec(own, spec)
            notes += _unseen(own, fitted, codec, rare=common is not None) + unknown_at_site(codec, own, fitted)
            own = fitted
            if sites.statistics == "federated" and spec.kind == "table" and config.missing == "refuse":
                refuse_missing(spec, own.train.inputs)
    public, _, all_classes = take_public_set(config, train, spec, seed, own.classes)
    named = named_rows([own], config)
    return SiteData(
        train=own.train if named is None else own.train.take(~named),
        test=own.test.take(np.empty(0, np.int64)),
        train_parts=Ragged.of([]),
        test_parts=Ragged.of([]),
        node_domains=np.empty(0, np.int64),
        priors=None,
        public=public,
        validation=None,
        public_labelled=bool(config.public and config.public.labelled),
        classes=all_classes,
        node_classes=own.classes,
        domain_names=("sites",),
        codec=codec,
        own_test=own.test,
        own_validation=None if named is None else own.train.take(named),
        share=config.node_validation,
        seed=seed,
        described=described,
        notes=notes,
    )


def _read_own(config: DataConfig, name: str, spec: DataSpec) -> Dataset:
    """Return a site's own set. An error may quote its values: that one is for the log, the server gets another."""
    try:
        if name.endswith(".toml"):
            config, name = _with_own_keys(config, Path(name).expanduser())
        units = config.units
        dataset = load_set(config.model_copy(update={"units": {}}), name)
    except InputError as error:
        _log.error("data = %r: %s", name, error)
        raise InputError("its data cannot be read as the config says; the reason is in the site's own log.") from None
    columns = tuple(
        one.model_copy(update={"unit": units.get(one.name, one.unit)}) for one in dataset.about.columns
    )  # a column that is missing is for the server to name
    dataset = replace(dataset, spec=dataset.about.model_copy(update={"columns": columns}))
    return in_kinds_of(in_task(dataset, config.model_copy(update={"units": units})), spec)


def _with_own_keys(config: DataConfig, path: Path) -> tuple[DataConfig, str]:
    """Return the config with the keys that a site's TOML file sets in place of the federation's, and its file."""
    table = read_table(path)
    file = table.pop("file", None)
    if not isinstance(file, str):
        raise InputError(f"{path}: file is missing: it names the file or folder of the site's own data.")
    for key in table:
        if key not in _OF_A_FILE:
            raise unknown(str(path), key, ("file", *_OF_A_FILE))
    try:
        config = DataConfig.model_validate({**config.model_dump(exclude_none=True), **table})
    except ValidationError as error:
        raise InputError(f"{path}: {on_one_line(str(error.errors()[0]['msg']))}.") from error
    return config, f"{FILE}{path.parent / Path(file).expanduser()}"


def _unseen(own: Dataset, fitted: Dataset, codec: Codec, *, rare: bool) -> tuple[str, ...]:
    """Return how many values of each column the codec has no category for: they become code 0.

    `rare`: whether the categories that it lacks are rare ones, and no others than in the description. Otherwise raises
    InputError for a column where most rows have one; it says no value and no count, as the server gets it.
    """
    if codec.spec.kind != "table":
        return ()
    where = {column.name: place for place, column in enumerate(own.about.columns)}
    before, after = (np.concatenate([one.train.inputs, one.test.inputs]) for one in (own, fitted))
    notes = []
    for codes, place in zip(codec.codes, codec.spec.categorical(), strict=True):
        name = codec.spec.columns[place].name
        of_code = np.append(codes, 0)  # the last one: of a missing value
        code = of_code[np.nan_to_num(after[:, place], nan=len(codes)).astype(np.int64)]
        count = int(((code == 0) & ~np.isnan(before[:, where[name]])).sum())
        if count > MOST_UNSEEN * len(after) and not rare:
            raise InputError(
                f"column {name!r}: most of its values are no category that data.sites.spec has; is this another "
                "column, or another spelling?"
            )
        if count:
            of = "a category that the sites have agreed on" if rare else "a category of data.sites.spec"
            notes.append(f"column {name!r}: {count} values are not {of}; they become code 0")
    return tuple(notes)


def _neutral_codec(config: DataConfig, spec: DataSpec) -> Codec:
    """Return the codec of all sites: with the mean and deviation of the config, otherwise with 0.5."""
    half = (0.5,) * spec.shape[0]
    empty = _empty(spec)
    one = Dataset(empty, empty, (), half, half, spec)
    return codec_of(config, [one], empty, np.empty(0, np.int64))


def _empty(spec: DataSpec) -> Samples:
    """Return no samples, of a description."""
    types = {largest: name for name, largest in LARGEST.items()}
    kind = types.get(spec.largest or 0, "float32") if spec.kind == "image" else RAW_TYPES[spec.kind][0]
    labels = np.empty(0, np.int64) if spec.task == "classification" else np.empty((0, 1))
    return Samples(np.empty((0, *spec.shape), kind), labels)


def _of_federation(own: Dataset, classes: tuple[str, ...], key: str, sites: RealSites) -> Dataset:
    """Return a set with the federation's classes. It may lack some of them, but must use the same names."""
    whose = "data.sites.classes" if sites.spec is None else "data.sites.spec"
    return in_classes(
        own, classes, key, whose, f"rename its classes, or add them to {whose} at the server and at all sites"
    )


def _as_described(config: DataConfig, spec: DataSpec) -> DataConfig:
    """Return the config with the task, and the length of series or texts, of a description, if it sets none.

    Raises InputError for another task.
    """
    if config.task not in ("classification", spec.task):
        raise InputError(f"data.task = {config.task!r}: data.sites.spec is for {spec.task}; remove task.")
    config = config.model_copy(update={"task": spec.task})
    if config.length is not None or spec.kind not in ("series", "tokens"):
        return config
    return config.model_copy(update={"length": spec.shape[-1]})


def without_samples(config: DataConfig, sites: RealSites, seed: int) -> FederatedData:
    """Return the server's data in a federation of real sites: the form of the samples, and its own samples."""
    agreed = read_agreement(config) if sites.spec is not None else _of_images(config, sites)
    codec, node_classes = agreed
    config = _as_described(config, codec.spec)
    if sites.statistics == "federated":
        plan_of(config, codec.spec, node_classes)  # raises InputError for options that do not serve them
    test, validation = _empty(codec.spec), None
    if sites.server is not None:
        key = f"data.sites.server = {sites.server!r}"
        held = _of_federation(in_kinds_of(load_set(config, sites.server), codec.spec), node_classes, key, sites)
        if sites.shape is not None:
            _refuse_unfit("data.sites.server", sites, held.classes, held.train.inputs.shape[1:])
        elif found := codec.spec.misfit(held.about):
            raise InputError(f"{key} does not fit data.sites.spec: {some(found, 5)}.")
        held = in_spec(held, codec.spec)
        test, (validation, _) = held.test, take_validation(config, held.train, codec.spec, seed, node_classes)
    public, _, classes = take_public_set(config, _empty(codec.spec), codec.spec, seed, node_classes)
    return replace(
        without_any(Agreement(codec, classes), node_classes, sites.count),
        test=test,
        public=public,
        validation=validation,
        public_labelled=bool(config.public and config.public.labelled),
    )


def without_any(
    agreed: Agreement, node_classes: tuple[str, ...], nodes: int, *, padded: bool | None = None
) -> FederatedData:
    """Return the data of a federation of which no sample is here; `padded`: see `FederatedData`."""
    none = _empty(agreed.codec.spec)
    return FederatedData(
        train=none,
        test=none,
        train_parts=Ragged(np.empty(0, np.int64), np.zeros(nodes + 1, np.int64)),
        test_parts=Ragged(np.empty(0, np.int64), np.zeros(nodes + 1, np.int64)),
        node_domains=np.zeros(nodes, np.int64),
        priors=None,
        public=None,
        validation=None,
        public_labelled=False,
        classes=agreed.classes,
        node_classes=node_classes,
        domain_names=("sites",),
        codec=agreed.codec,
        known_padded=padded,
    )


def _of_images(config: DataConfig, sites: RealSites) -> Agreement:
    assert sites.shape is not None
    spec = DataSpec(kind="image", shape=sites.shape, largest=255.0)
    return Agreement(_neutral_codec(config, spec), tuple(sites.classes or ()))


def misfit(
    sites: RealSites, classes: tuple[str, ...], shape: tuple[int, ...], wanted: tuple[str, ...] | None = None
) -> str | None:
    """Return why images of these classes and this shape do not fit a federation of real sites, or None if they fit.

    `wanted`: all classes of the federation, if its public set has its own classes.
    """
    assert sites.shape is not None
    wanted = wanted or tuple(sites.classes or ())
    if classes != wanted:
        return f"its classes are {some(classes)}; data.sites.classes are {some(wanted)}"
    if shape != tuple(sites.shape):
        have, want = ("x".join(map(str, one)) for one in (shape, sites.shape))
        return f"its images are {have} (channels x height x width), data.sites.shape is {want}"
    return None


def _refuse_unfit(key: str, sites: RealSites, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    if (reason := misfit(sites, classes, shape)) is not None:
        raise InputError(f"{key}: {reason}; set data.size and data.channels to give images the same shape.")

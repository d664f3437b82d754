"""`[data]`: the samples, their form, the partition, the public set and real sites."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from .tables import Channels, Count, Fraction, NotNegative, Table


class PublicConfig(Table):
    """`data.public`: the public set, which the server and all nodes have."""

    size: Count
    name: str | None = None  # another named set; by default images that are removed from the training images
    labelled: bool = False
    own_classes: bool = False  # its classes differ from the nodes' classes: models have outputs for both
    balanced: bool = True  # the same number of images for each class, if there are enough

    @pydantic.model_validator(mode="after")
    def _labels_of_another_set(self) -> PublicConfig:
        if self.own_classes and not (self.labelled and self.name is not None):
            raise ValueError(
                "own_classes = true: only another labelled set has other classes; set name and labelled = true"
            )
        return self


class ValidationConfig(Table):
    """`data.validation`: labelled images that only the server has, from the training images, equally many per class."""

    size: Count


class PartitionConfig(Table):
    """`data.partition`: a scheme and its options; `seed` is by default the run's seed."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    scheme: str
    minimum: Count = 1
    seed: Annotated[int, Field(ge=0)] | None = None


class SetsConfig(Table):
    """Where samples come from, and the form to which they are converted.

    `root` and `download` are for named sets, `label` to `classes` for files, the rest says how samples are encoded.
    """

    root: str | None = None
    download: bool = False
    # what arrays are, where neither the set nor their type says it
    kind: Literal["image", "table", "series", "tokens", "array"] | None = None
    task: Literal["classification", "multilabel", "regression"] = "classification"
    # of a file: its columns
    label: str | Annotated[list[str], Field(min_length=1)] | None = None  # several: see task
    text: str | None = None  # the column with texts, which become tokens; otherwise the columns are a table
    node: str | None = None  # the column that says who has a row: see the scheme `natural`
    split: str | None = None  # the column that is `train` or `test`
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2  # without `split`: the share of test rows, drawn by class and node
    time: str | None = None  # the column that says when: the last rows of each node are the test rows, not drawn ones
    gap: NotNegative = 0.0  # test rows that are not later than the last training row by more than this are left out
    drop: list[str] = Field(default_factory=list)  # columns that are not used
    columns: dict[str, Literal["numeric", "categorical"]] = Field(default_factory=dict)  # by default by their values
    units: dict[str, str] = Field(default_factory=dict)
    drop_unlabelled: bool = False
    max_categories: Count = 10_000
    classes: list[str] | None = None  # by default those of the file, sorted
    # how samples are encoded
    scaling: Literal["standard", "quantile", "instance", "none"] = "standard"
    missing: Literal["mean", "median", "indicator", "refuse", "zero", "hold"] | None = None
    min_count: Count | None = None  # rarer categories (by default 1) and words (2) become unknown
    tokenizer: Literal["words", "bytes"] = "words"
    length: Count | None = None  # the most steps of a series, the most tokens of a text (128)
    longer: Literal["refuse", "cut"] | None = None  # series: refuse; texts: cut
    # of images
    size: Annotated[int, Field(ge=4, le=4096)] | None = None
    channels: Channels | None = None
    # of the pixels (0..1), one value per channel; by default the values of the set, if they are known
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    deviation: list[Fraction] | None = None
    train_per_class: Count | None = None  # use only this number of images, the first ones, of each class and set
    test_per_class: Count | None = None

    @property
    def labels(self) -> list[str]:
        """Return the columns that a model predicts."""
        return [self.label] if isinstance(self.label, str) else list(self.label or [])

    @pydantic.model_validator(mode="after")
    def _fits_task(self) -> SetsConfig:
        if self.task == "classification":
            if isinstance(self.label, list):
                raise ValueError(
                    'label is a list: a class is in one column; set task = "multilabel" (several labels, each there or '
                    'not) or task = "regression" (numbers)'
                )
            return self
        for key in ("classes", "train_per_class", "test_per_class"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is for classes; task is {self.task!r}, so remove {key}")
        return self

    @property
    def folder(self) -> Path:
        """Return the folder of the sets: `data.root`, or else $FEDKD_DATA, or else `data`."""
        return Path(self.root or os.environ.get("FEDKD_DATA") or "data").expanduser()


class RealSites(Table):
    """`data.sites`: real sites use their own samples, which have this form. The server does not have them."""

    count: Count  # the number of sites that a new federation waits for
    # what samples are: a file that `fedkd describe` has written; or of images, their classes and shape
    spec: str | None = None
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    shape: tuple[Channels, Count, Count] | None = None  # channels, height, width
    server: str | None = None  # a named set on the server, for the test images and the images of data.validation
    # who says the numbers of the codec (means, deviations, known categories): the file, or the sites before round 1
    statistics: Literal["given", "federated"] = "given"

    @pydantic.model_validator(mode="after")
    def _one_form(self) -> RealSites:
        if (self.spec is None) == (self.shape is None) or (self.shape is None) != (self.classes is None):
            raise ValueError(
                "set either spec (a file that `fedkd describe` has written), or the classes and the shape of images"
            )
        if self.statistics == "federated" and self.spec is None:
            raise ValueError("statistics = 'federated' needs spec, a file that `fedkd describe --form` has written")
        return self

    @pydantic.field_validator("classes")
    @classmethod
    def _names(cls, value: list[str] | None) -> list[str] | None:
        if value is None:
            return None
        names = [unicodedata.normalize("NFC", name) for name in value]
        if not all(name.strip() for name in names):
            raise ValueError("a class has no name")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is there twice; each class needs a name of its own")
        return names

    @pydantic.field_validator("shape", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


def _is_file(name: str) -> bool:
    return name.startswith("file:")


class DataConfig(SetsConfig):
    """`[data]`: the images, their form, and the nodes that have them."""

    name: str | None = None
    names: Annotated[list[str], Field(min_length=1)] | None = None  # several sets, each a domain
    file: str | None = None  # a table, an archive of arrays, or a folder of one of them: see `data.data_files`
    sites: RealSites | None = None  # instead of name or names: real sites use their own images
    partition: PartitionConfig | None = None
    public: PublicConfig | None = None
    validation: ValidationConfig | None = None
    node_test: Count = 200  # test images per node, drawn from the node's own label distribution
    # or dealt, of each class that a node trains on and in the order of the test set: `owned`: the next ones, an equal
    # share for each node; `cut`: `node_test` images, those at the node's own place in the class
    node_test_by: Literal["labels", "owned", "cut"] = "labels"
    # a node trains on this share of its images: the first ones in the order in which the scheme has given them
    node_train: Fraction | None = None
    node_validation: Annotated[float, Field(gt=0, lt=1)] | None = None  # a share of each node's training samples
    # this share of the training samples in place of the test samples: for choosing settings
    held_out: Annotated[float, Field(gt=0, lt=1)] | None = None
    augment: Literal["none", "crop_flip", "crop_flip_reflect"] = "none"
    # of normal noise on each node's images: its deviation at the last node, of pixels from 0 to 1; 0 at the first one
    noise: NotNegative = 0.0

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> DataConfig:
        if [self.name, self.names, self.file, self.sites].count(None) != 3:
            raise ValueError(
                "set either name (one set), names (several sets, each a domain), file (a file or folder) or sites "
                "(real sites)"
            )
        for key in ("label", "text", "node", "split", "time", "drop", "columns", "units"):
            if getattr(self, key) and (self.name or self.names) and not any(map(_is_file, self.set_names)):
                raise ValueError(f"{key} is for the columns of a file; set file in place of name, or remove {key}")
        if self.held_out is not None and self.sites is not None:
            raise ValueError("held_out is for a simulation: sites have their own test samples; remove held_out")
        if self.node_train is not None and self.sites is not None:
            raise ValueError("node_train is for a simulation: sites train on all of their own samples; remove it")
        if self.noise and self.sites is not None:
            raise ValueError("noise is for a simulation: sites have images of their own; remove noise")
        if self.split is not None and self.time is not None:
            raise ValueError("split and time both say which rows are for tests; remove one of them")
        if self.sites is None and self.partition is None:
            raise ValueError("partition is missing: it says which node has which training images")
        if self.sites is not None and self.partition is not None:
            raise ValueError("partition has nothing to split, because sites use their own images; remove partition")
        if self.sites is not None and self.public is not None and self.public.name is None:
            raise ValueError(
                "public needs a name: a named set that the server and all sites have next to their own images"
            )
        if self.sites is not None and self.validation is not None and self.sites.server is None:
            raise ValueError("validation images come from the server's own set, which is missing; set sites.server")
        if self.sites is not None:
            self._fit(self.sites)
        return self

    @pydantic.model_validator(mode="after")
    def _tests_by_class(self) -> DataConfig:
        key = f"node_test_by = {self.node_test_by!r}"
        if self.node_test_by == "labels":
            return self
        if self.sites is not None:
            raise ValueError(f"{key} is for a simulation: sites have their own test samples; remove node_test_by")
        if self.task != "classification":
            raise ValueError(f"{key} deals test samples by class; task is {self.task!r}, so remove node_test_by")
        if len(self.set_names) > 1:
            raise ValueError(f"{key} is for one set; names has {len(self.set_names)}, so remove node_test_by")
        if self.node_test_by == "owned" and self.node_test != DataConfig.model_fields["node_test"].default:
            raise ValueError(f"{key} gives each node an equal share of a class; remove node_test, or set 'cut'")
        return self

    def _fit(self, sites: RealSites) -> None:
        """Raise ValueError if the form to which samples are converted is not the sites' form."""
        if sites.shape is None:
            if sites.statistics == "federated":
                for key in ("mean", "deviation"):
                    if getattr(self, key) is not None:
                        raise ValueError(f"{key} is what sites.statistics = 'federated' measures; remove {key}")
            learned = ("missing", "min_count") if sites.statistics == "given" else ()
            given = [key for key in ("mean", "deviation", *learned, "classes") if getattr(self, key)]
            if given := given + ["scaling"] * (self.scaling != "standard" and sites.statistics == "given"):
                raise ValueError(f"{given[0]} is in the file sites.spec already; remove {given[0]}")
            return
        if self.task != "classification":
            raise ValueError(f"task = {self.task!r} needs sites.spec: sites.shape is for images with one class each")
        channels, *pixels = sites.shape
        has = f"has {channels} channel{'s' if channels > 1 else ''}"
        for key, numbers in (("mean", self.mean), ("deviation", self.deviation)):
            if numbers is not None and len(numbers) != channels:
                raise ValueError(
                    f"{key} = {numbers}, but sites.shape = {list(sites.shape)} {has}; give one number per channel"
                )
        if self.channels not in (None, channels):
            raise ValueError(f"channels = {self.channels}, but sites.shape = {list(sites.shape)} {has}; set it to that")
        if self.size is not None and pixels != [self.size] * 2:
            raise ValueError(
                f"size = {self.size}, but sites.shape = {list(sites.shape)} has {pixels[0]} x {pixels[1]} pixels; "
                "set both to the same number"
            )

    @property
    def set_names(self) -> list[str]:
        """Return the names of the sets, one or several; `sites` if real sites use their own images."""
        return ["sites"] if self.sites is not None else list(self.names or [str(self.name or self.file)])

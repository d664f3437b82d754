"""`[data]`: which images, in what form, who has them, the public set and real sites."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from .tables import Count, Fraction, Table


class PublicConfig(Table):
    """`data.public`: the transfer set that the server and all nodes hold."""

    size: Count
    name: str | None = None  # another named set; by default images taken out of the training images
    labelled: bool = False
    own_classes: bool = False  # its labels are other classes than the nodes': models have outputs for both
    balanced: bool = True  # the same number of each class, as far as the images go

    @pydantic.model_validator(mode="after")
    def _labels_of_another_set(self) -> PublicConfig:
        if self.own_classes and not (self.labelled and self.name is not None):
            raise ValueError("own_classes = true: only another labelled set has them; give name and labelled = true")
        return self


class ValidationConfig(Table):
    """`data.validation`: labelled images of the server's own, out of the training images, as many of each class."""

    size: Count


class PartitionConfig(Table):
    """`data.partition`: a scheme and its options; `seed` is the run's unless given."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    scheme: str
    minimum: Count = 1
    seed: Annotated[int, Field(ge=0)] | None = None


class SetsConfig(Table):
    """Where named sets are, and the form that their images are brought to."""

    root: str | None = None
    download: bool = False
    size: Annotated[int, Field(ge=4)] | None = None
    channels: Literal[1, 3] | None = None
    # of the pixels (0..1), a channel; by default the set's own, where it is known
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    deviation: list[Fraction] | None = None
    train_per_class: Count | None = None  # only the first so many images of each class and set
    test_per_class: Count | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of the sets: `data.root`, else $FEDKD_DATA, else `data`."""
        return Path(self.root or os.environ.get("FEDKD_DATA") or "data")


class RealSites(Table):
    """`data.sites`: real sites bring images of their own, of this form; the server has none of them."""

    count: Count  # sites that a new federation waits for
    classes: Annotated[list[str], Field(min_length=2)]
    shape: tuple[Literal[1, 3], Count, Count]  # channels, height, width
    server: str | None = None  # a named set of the server's own: test images, and those of data.validation

    @pydantic.field_validator("shape", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class DataConfig(SetsConfig):
    """`[data]`: which images, of what form, and who holds them."""

    name: str | None = None
    names: Annotated[list[str], Field(min_length=1)] | None = None  # several sets, each a domain
    sites: RealSites | None = None  # neither: real sites bring their own
    partition: PartitionConfig | None = None
    public: PublicConfig | None = None
    validation: ValidationConfig | None = None
    node_test: Count = 200  # test images a node, drawn by its own label distribution
    augment: Literal["none", "crop_flip"] = "none"

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> DataConfig:
        if [self.name, self.names, self.sites].count(None) != 2:
            raise ValueError("set either name (one set), names (several sets, each a domain) or sites (real sites)")
        if self.sites is None and self.partition is None:
            raise ValueError("partition is missing: who holds what of the images")
        if self.sites is not None and self.partition is not None:
            raise ValueError("sites bring images of their own; there is nothing for partition to split")
        if self.sites is not None and self.public is not None and self.public.name is None:
            raise ValueError("public needs a name: a set that the server and all sites hold beside their own images")
        if self.sites is not None and self.validation is not None and self.sites.server is None:
            raise ValueError("validation is taken out of sites.server, a set of the server's own, which is missing")
        return self

    @property
    def set_names(self) -> list[str]:
        """Return the named sets, one or several; `sites` where real sites bring theirs."""
        return ["sites"] if self.sites is not None else list(self.names or [str(self.name)])

"""The common parts of the tables of a run file: strict checks, named tables, and the types of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Metric = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}/[a-z0-9_]{1,60}$")]  # scope/name
Probability = Annotated[float, Field(ge=0, le=1)]
Group = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]  # groups of differentiable augmentations
GROUPS: tuple[Group, ...] = get_args(Group)
AnyGroup = Literal[
    Group, "noise", "swap", "drop", "jitter", "shift", "cut"
]  # also of rows and series, whose groups `siamese_kinds` lists
Kind = Literal[
    "weights",
    "control_variates",
    "logits",
    "prototypes",
    "images",
    "statistics",
    "generator",
    "indices",
]  # the kinds of arrays in a payload
KINDS: tuple[Kind, ...] = get_args(Kind)


def _whole(value: Any) -> Any:
    if type(value) is not int:  # true and 1.0 equal 1, and would pass as it
        raise ValueError("should be a whole number")
    return value


Channels = Annotated[Literal[1, 3], pydantic.BeforeValidator(_whole)]


VALUE_LIMIT = 1e8  # sums of squares of such values stay finite in float32


class Limits(NamedTuple):
    """What one message may have: bytes, in total and by kind of arrays, and the largest absolute value in an array."""

    total: int
    kinds: Mapping[str, int]
    value: float = VALUE_LIMIT


class Table(BaseModel):
    """A table that refuses unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class NamedTable(Table):
    """A table with a name. Its other keys are options of the named object and are checked against it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """Return the keys other than the name."""
        return dict(self.model_extra or {})


Architecture = int | NamedTable  # a number in `model.names`, or the name and options of another model of the method

"""What all sites and the server encode samples by: the description of samples, their classes and the codec, as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from ..config import DataConfig
from ..errors import InputError, MissingFiles, on_one_line, reason_of
from ..files import parse_json, read
from ..registry import file_of
from .codec import Codec, without_numbers
from .moments import scaled_columns
from .samples import MOST
from .spec import DataSpec

MOST_BYTES = 2**26  # of the file
_LONGEST_NAME = 200  # letters of a class, a column, a unit
_MOST_SIDE, _MOST_AXES = 10**7, 8
_MOST_VALUES = 10**9  # of one sample
_AXES = {"image": 3, "table": 1, "series": 2, "tokens": 1}


class Agreement(NamedTuple):
    """What all sites and the server have to have in common: the codec, which has the description, and the classes.

    The codec may be one without learned numbers (`Codec.learned`); then sites agree on them before round 1.
    """

    codec: Codec
    classes: tuple[str, ...]


class _CodecFile(pydantic.BaseModel):
    """The numbers of a codec: see `Codec`."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    mean: list[float]
    deviation: list[float]
    fill: list[float]
    indicators: list[int]
    edges: list[list[float]] | None
    codes: list[list[int]]
    instance: bool
    target_mean: list[float]
    target_deviation: list[float]


class _File(pydantic.BaseModel):
    """What the file must be."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    classes: list[str]
    spec: DataSpec
    codec: _CodecFile | None


def to_json(agreement: Agreement) -> bytes:
    """Return an agreement as JSON. Floats keep all digits, so that the codec read from it has the same hash."""
    codec = agreement.codec
    numbers: dict[str, Any] = {
        "mean": codec.mean.tolist(),
        "deviation": codec.deviation.tolist(),
        "fill": codec.fill.tolist(),
        "indicators": list(codec.indicators),
        "edges": None if codec.edges is None else codec.edges.tolist(),
        "codes": [one.tolist() for one in codec.codes],
        "instance": codec.instance,
        "target_mean": codec.target_mean.tolist(),
        "target_deviation": codec.target_deviation.tolist(),
    }
    found = {"codec": numbers if codec.learned else None}
    table = {"classes": list(agreement.classes), "spec": codec.spec.model_dump(mode="json"), **found}
    return json.dumps(table, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def agreement_of(content: bytes) -> Agreement:
    """Return the agreement in a JSON text. Raises ValueError if it is none, or if its parts do not fit together."""
    parse_json(content)
    file = _File.model_validate_json(content)
    _refuse_odd_spec(file.spec)
    _refuse_odd_names("class", file.classes)
    if len(file.classes) < (2 if file.spec.task == "classification" else 1):
        raise ValueError("it has fewer than two classes")
    targets = len(file.classes) if file.spec.task == "regression" else 0
    if file.codec is None:
        return Agreement(without_numbers(file.spec, targets), tuple(file.classes))
    _refuse_odd_numbers(file.codec, file.spec)
    if [len(file.codec.target_mean), len(file.codec.target_deviation)] != [targets] * 2:
        raise ValueError("codec: target_mean and target_deviation have not a number for each target")
    if not all(0 < one <= MOST for one in file.codec.target_deviation):
        raise ValueError("codec: a deviation of a target is not above 0, or is too large")
    numbers = file.codec
    codec = Codec(
        file.spec,
        np.array(numbers.mean, np.float64),
        np.array(numbers.deviation, np.float64),
        np.array(numbers.fill, np.float64),
        tuple(numbers.indicators),
        None if numbers.edges is None else np.array(numbers.edges, np.float64),
        tuple(np.array(one, np.int64) for one in numbers.codes),
        numbers.instance,
        np.array(numbers.target_mean, np.float64),
        np.array(numbers.target_deviation, np.float64),
    )
    return Agreement(codec, tuple(file.classes))


def read_agreement(config: DataConfig) -> Agreement:
    """Return the agreement in the file `data.sites.spec`, of the Flower App or of this folder.

    Raises InputError for a missing or wrong file, and for one that is not what `data.sites.statistics` says.
    """
    assert config.sites is not None
    assert config.sites.spec is not None
    path = file_of(Path(config.sites.spec))
    key = f"data.sites.spec = {config.sites.spec!r}"
    if not path.exists():
        raise MissingFiles(f"{key}: there is no such file; `fedkd describe` writes one.")
    try:
        found = agreement_of(read(path, MOST_BYTES))
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: it is not what `fedkd describe` writes: {reason_in(error)}.") from error
    federated = config.sites.statistics == "federated"
    if not federated and not found.codec.learned:
        raise InputError(
            f"{key}: its codec is null; set data.sites.statistics = 'federated', so that the sites agree on one, or "
            "write the file without --form."
        )
    if federated and found.codec.learned:
        raise InputError(
            f"{key}: it has a codec, but data.sites.statistics is 'federated'; write the file with `fedkd describe "
            "--form`, or remove statistics."
        )
    return found


def spec_of(text: str) -> DataSpec:
    """Return the description in a JSON text that a stranger may have written. Raises ValueError if it is none."""
    try:
        parse_json(text)
        spec = DataSpec.model_validate_json(text)
        _refuse_odd_spec(spec)
    except ValueError as error:
        raise ValueError(reason_in(error)) from None
    return spec


def reason_in(error: Exception) -> str:
    """Return why a text is no agreement, on one line."""
    if isinstance(error, pydantic.ValidationError):
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3]]
        return on_one_line("; ".join(found), 300)
    return on_one_line(reason_of(error), 300)


def _refuse_odd_names(what: str, names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"a {what} is there twice")
    if any(not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME for name in names):
        raise ValueError(f"the name of a {what} is empty, not printable or longer than {_LONGEST_NAME} letters")


def _refuse_odd_spec(spec: DataSpec) -> None:
    """Raise ValueError for a description that no samples can have."""
    axes = _AXES.get(spec.kind, len(spec.shape))
    if not 1 <= len(spec.shape) <= _MOST_AXES or len(spec.shape) != axes:
        raise ValueError(f"samples of kind {spec.kind} have no shape of {len(spec.shape)} numbers")
    if not all(1 <= side <= _MOST_SIDE for side in spec.shape):
        raise ValueError(f"its shape has numbers that are not 1 to {_MOST_SIDE}")
    if math.prod(spec.shape) > _MOST_VALUES:
        raise ValueError(f"its shape is that of samples with more than {_MOST_VALUES} values")
    if spec.largest is not None and not 0 < spec.largest <= MOST:
        raise ValueError(f"its largest value is not between 0 and {MOST:g}")
    _refuse_odd_names("column", [column.name for column in spec.columns])
    if any(not one.isprintable() or len(one) > _LONGEST_NAME for one in spec.units):
        raise ValueError(f"a unit of a target is not printable or longer than {_LONGEST_NAME} letters")
    if any(not one.unit.isprintable() or len(one.unit) > _LONGEST_NAME for one in spec.columns):
        raise ValueError(f"a unit is not printable or longer than {_LONGEST_NAME} letters")
    if spec.columns and spec.kind not in ("table", "series"):
        raise ValueError(f"samples of kind {spec.kind} have no columns")
    if len(spec.columns) != spec.shape[0] and (spec.kind == "table" or spec.columns):
        raise ValueError(f"it has {len(spec.columns)} columns, and its shape says {spec.shape[0]}")
    lists = [column.categories for column in spec.columns if column.categories is not None]
    if spec.kind == "series" and lists:
        raise ValueError("a channel of a series has categories")
    if any(len(set(one)) < len(one) for one in [*lists, spec.words]):
        raise ValueError("a category or a word is there twice")
    if spec.words and spec.kind != "tokens":
        raise ValueError(f"samples of kind {spec.kind} have no words")


def _refuse_odd_numbers(codec: _CodecFile, spec: DataSpec) -> None:
    """Raise ValueError for numbers that are not those of a codec of this description."""
    numbers, scaled = len(spec.numeric()), scaled_columns(spec)
    if len(codec.mean) != scaled or len(codec.deviation) != scaled:
        raise ValueError(f"codec: mean and deviation have not a number for each of {scaled} channels or columns")
    if not all(0 < one <= MOST for one in codec.deviation) or not all(abs(one) <= MOST for one in codec.mean):
        raise ValueError("codec: a deviation is not above 0, or a number is too large")
    if len(codec.fill) != (numbers if spec.kind == "table" else 0) or not all(abs(one) <= MOST for one in codec.fill):
        raise ValueError("codec: fill has not a number for each numeric column")
    if codec.indicators != sorted(set(codec.indicators)) or not all(0 <= i < len(codec.fill) for i in codec.indicators):
        raise ValueError("codec: indicators are not positions of numeric columns")
    if codec.edges is not None and (
        len(codec.edges) != len(codec.fill)
        or len({len(one) for one in codec.edges}) > 1
        or any(not one or one != sorted(one) for one in codec.edges)
    ):
        raise ValueError("codec: edges are not rising numbers for each numeric column")
    lengths = [len(spec.columns[place].categories or ()) for place in spec.categorical()]
    lengths = [len(spec.words)] if spec.kind == "tokens" else lengths
    if [len(one) for one in codec.codes] != lengths:
        raise ValueError("codec: codes has not a list for each categorical column, with a number for each category")
    for one in codec.codes:
        if any(not 0 <= code <= len(one) for code in one):
            raise ValueError("codec: a code is not 0 to the number of categories")
    if codec.instance and spec.kind != "series":
        raise ValueError("codec: instance is for series")

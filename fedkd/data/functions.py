"""Sets that a function returns: a `Dataset`, arrays, or torch Datasets; and torchvision's classes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import SetsConfig
from ..errors import InputError, some
from ..registry import errors_of
from .arrays import NAMES, NEEDED, from_arrays
from .pictures import alike, pixels_of
from .samples import KEY, LARGEST, Dataset
from .series import padded_series

_VALID = (
    "valid are a fedkd.Dataset; x_train, y_train, x_test, y_test; a dict of these; a pair (train, test) of torch "
    "Datasets, or of pairs (x, y)"
)


class _Part(NamedTuple):
    inputs: np.ndarray
    labels: np.ndarray
    first: bool  # images have their channels first, as torch's have
    length: np.ndarray | None = None


def from_function(
    function: Any, name: str, root: Path, download: bool, size: int | None, config: SetsConfig
) -> Dataset:
    """Return the set that a function makes; it is called with those of `root` and `download` that it takes.

    What it may return: `_VALID`. Arrays are as `from_arrays` says; of torch, images are N x C x H x W. Without a kind,
    N x columns of floats is a table, and four dimensions are images. Raises InputError, which names the function, for
    anything else.
    """
    where = f"what {name} returns"
    with errors_of(name, KEY):
        if inspect.isclass(function) and issubclass(function, torch.utils.data.Dataset):
            found: Any = _both_parts(function, root, download)
        elif callable(function):
            found = function(**_taken(function, {"root": root, "download": download}))
        else:
            raise InputError(f"{KEY} = {name!r} is {type(function).__name__}, no function.")
        if isinstance(found, Dataset):
            return found
        return from_arrays(*_arrays(found, name, size, config, where))


def _taken(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return options
    named = {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    return {key: value for key, value in options.items() if key in named}


def _both_parts(source: Callable[..., Any], root: Path, download: bool) -> tuple[Any, Any]:
    """Return the training and the test part of a class such as torchvision's. Raises InputError if it has none."""
    options = _taken(source, {"root": str(root), "download": download})
    parameters = inspect.signature(source).parameters
    if "train" in parameters:
        return source(train=True, **options), source(train=False, **options)
    if "split" in parameters:
        return source(split="train", **options), source(split="test", **options)
    raise InputError(
        f"{KEY}: the class {getattr(source, '__name__', source)} has neither a parameter `train` nor `split`; write a "
        "function that returns a pair (train, test) of its objects."
    )


def _arrays(
    found: Any, name: str, size: int | None, config: SetsConfig, where: str
) -> tuple[dict[str, np.ndarray], SetsConfig, str]:
    """Return what a function has returned as the arrays of `from_arrays`, whose images have their channels last."""
    said = f"{KEY} = {name!r}"
    if isinstance(found, Mapping):
        if lacking := [key for key in NEEDED if key not in found]:
            raise InputError(f"{said}: it returns a dict without {', '.join(lacking)}; {_VALID}.")
        more = {key: np.asarray(found[key]) for key in NAMES if key in found and key not in NEEDED}
        pairs: list[Any] = [(found["x_train"], found["y_train"]), (found["x_test"], found["y_test"])]
    elif isinstance(found, tuple | list) and len(found) == 4:
        more, pairs = {}, [found[:2], found[2:]]
    elif isinstance(found, tuple | list) and len(found) == 2:
        more, pairs = {}, list(found)
    else:
        have = f"{len(found)} values" if isinstance(found, tuple | list) else type(found).__name__
        raise InputError(f"{said}: it returns {have}; {_VALID}.")
    parts = [_part(pair, f"{said}: the {label} part", size, config)
             for label, pair in zip(("training", "test"), pairs, strict=True)]  # fmt: skip
    arrays = dict(more)
    kind = config.kind or ("kind" in more and str(np.atleast_1d(more["kind"])[0])) or _kind(parts, more)
    for label, part in zip(("train", "test"), parts, strict=True):
        images = kind == "image" and part.first and part.inputs.ndim == 4
        arrays[f"x_{label}"] = part.inputs.transpose(0, 2, 3, 1) if images else part.inputs
        arrays[f"y_{label}"] = part.labels
        if part.length is not None and f"length_{label}" not in arrays:
            arrays[f"length_{label}"] = part.length
    classes = getattr(found[0], "classes", None) if not isinstance(found, Mapping) else None
    if isinstance(classes, Sequence) and not isinstance(classes, str) and "classes" not in arrays:
        arrays["classes"] = np.array([str(one) for one in classes])
    return arrays, config.model_copy(update={"kind": kind}) if kind else config, where


def _kind(parts: Sequence[_Part], more: Mapping[str, Any]) -> str | None:
    """Return what arrays without a kind are, if their form says it."""
    inputs = parts[0].inputs
    if any(part.length is not None for part in parts) or any(key.startswith("length") for key in more):
        return None
    if inputs.ndim == 4 or (inputs.dtype.name in LARGEST and inputs.ndim == 3):
        return "image"
    return "table" if inputs.ndim == 2 and inputs.dtype.kind == "f" else None


def _part(pair: Any, said: str, size: int | None, config: SetsConfig) -> _Part:
    if isinstance(pair, tuple | list) and len(pair) == 2:
        inputs, labels = (_plain(one, said) for one in pair)
        return _Part(inputs, labels, isinstance(pair[0], Tensor))
    if hasattr(pair, "__getitem__") and hasattr(pair, "__len__"):
        return _items(pair, said, size, config)
    raise InputError(f"{said} is {type(pair).__name__}; {_VALID}.")


def _plain(array: Any, said: str) -> np.ndarray:
    """Return an array or a tensor as a NumPy array. Raises InputError for anything else."""
    if isinstance(array, Tensor):
        if array.device.type != "cpu":
            raise InputError(f"{said} has a tensor on the device {array.device}; return tensors on the CPU.")
        return np.asarray(array.detach().numpy())
    if isinstance(array, np.ndarray | list | tuple | np.generic | int | float) or hasattr(array, "to_numpy"):
        try:
            found = np.asarray(array)
        except ValueError as error:
            raise InputError(f"{said} has a list of unlike lengths; return arrays, or a torch Dataset.") from error
        if found.dtype.kind in "biufSU":
            return found
        raise InputError(f"{said} has an array of {found.dtype}; it must be numbers.")
    raise InputError(f"{said} has {type(array).__name__} for an array; {_VALID}.")


def _items(source: Any, said: str, size: int | None, config: SetsConfig) -> _Part:
    """Return the items (input, label) of a torch Dataset as arrays; each is read once."""
    inputs, labels, tensors = [], [], False
    for number in range(len(source)):
        item = source[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"{said}: item {number} is {type(item).__name__}; it must be a pair (input, label).")
        value, label = item
        tensors |= isinstance(value, Tensor)
        inputs.append(pixels_of(value, size) if isinstance(value, Image.Image) else _plain(value, said))
        labels.append(_plain(label, said))
        if labels[-1].shape != labels[0].shape or (config.task == "classification" and labels[-1].size != 1):
            must = "it must be one class" if config.task == "classification" else f"the first one {labels[0].shape}"
            raise InputError(f"{said}: the label of item {number} has the shape {labels[-1].shape}; {must}.")
    if not inputs:
        raise InputError(f"{said} has no items.")
    label_array = np.array([one.reshape(()) if one.size == 1 and one.ndim < 2 else one for one in labels])
    shapes = {one.shape for one in inputs}
    if len(shapes) == 1:
        return _Part(np.stack(inputs), label_array, tensors)
    series = {one.ndim for one in inputs} <= {1, 2} and len({one.shape[:-1] for one in inputs}) == 1
    if series and config.kind in (None, "series", "tokens"):
        whole = all(one.dtype.kind in "iu" for one in inputs) and inputs[0].ndim == 1
        if config.kind == "tokens" or (config.kind is None and whole):
            rows = list(itertools.zip_longest(*(one.tolist() for one in inputs), fillvalue=0))
            return _Part(np.array(rows, np.int64).T, label_array, tensors, np.array([len(one) for one in inputs]))
        padded, length = padded_series(inputs)
        return _Part(padded, label_array, tensors, length)
    try:
        return _Part(alike(inputs), label_array, tensors)
    except ValueError as error:
        shown = some([" x ".join(map(str, shape)) for shape in sorted(shapes)], 3)
        raise InputError(f"{said} has inputs of {len(shapes)} shapes: {shown}; give all of them one shape.") from error

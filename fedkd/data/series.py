"""Series of unequal length, with gaps, as arrays of one length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import SetsConfig
from ..errors import InputError
from .samples import SOURCE, as_float32, first_places

_PARTS = ("train", "test")


def as_series(
    parts: Sequence[np.ndarray], lengths: Sequence[np.ndarray | None], config: SetsConfig, where: str, notes: list[str]
) -> list[np.ndarray]:
    """Return the training and the test series, N x C x T or, of one channel, N x T, as float32, N x C x T, NaN behind
    the end of each. T: `data.length`, or else the most steps of both parts.

    `lengths`: the steps of each series; without them a series ends with its last step that has a value. Adds to `notes`
    what was cut or filled. Raises InputError for series without steps, with gaps or too many steps if the config does
    not say what to do, and for lengths that are none.
    """
    found: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    for part, given, length in zip(_PARTS, parts, lengths, strict=True):
        name = f"x_{part}"
        if given.ndim not in (2, 3) or given.dtype.kind not in "iuf" or 0 in given.shape[1:]:
            shape = " x ".join(map(str, given.shape))
            raise InputError(
                f"{SOURCE}: {name} in {where} is {given.dtype}, {shape}; series are numbers, N x channels x T."
            )
        series = as_float32(given if given.ndim == 3 else given[:, None])
        if found and series.shape[1] != found[0].shape[1]:
            raise InputError(
                f"{SOURCE}: x_train and x_test in {where} have {found[0].shape[1]} and {series.shape[1]} channels."
            )
        if length is not None:
            ends_at = _checked_lengths(length, series, part, where)
            inside = np.arange(series.shape[2]) < ends_at[:, None]
            series = np.where(inside[:, None], series, np.float32(np.nan))
        steps = last_steps(series)
        if length is not None and (early := int((steps < ends_at).sum())):
            notes.append(f"{early} series of {name} in {where} have no value in their last steps, and end before them")
        _refuse_empty(steps, f"{name} in {where}")
        found.append(series)
        ends.append(steps)
    channels, longest = found[0].shape[1], max(int(steps.max()) for steps in ends)
    if channels > longest:
        notes.append(
            f"series have {channels} channels and at most {longest} steps, N x channels x T; if x is N x T x channels, "
            "write x.transpose(0, 2, 1)"
        )
    most = config.length or max(int(steps.max()) for steps in ends)
    return [_cut_and_filled(one, steps, most, config, f"x_{part} in {where}", notes)
            for part, one, steps in zip(_PARTS, found, ends, strict=True)]  # fmt: skip


def _refuse_empty(steps: np.ndarray, name: str) -> None:
    if (empty := steps == 0).any():
        raise InputError(f"{SOURCE}: {int(empty.sum())} series of {name} have no steps{first_places(empty)}.")


def last_steps(series: np.ndarray) -> np.ndarray:
    """Return for each series the number of steps up to the last one with a value."""
    here = ~np.isnan(series).all(1)
    return np.where(here.any(1), here.shape[1] - here[:, ::-1].argmax(1), 0)


def _checked_lengths(length: np.ndarray, series: np.ndarray, part: str, where: str) -> np.ndarray:
    count, _, steps = series.shape
    name = f"length_{part} in {where}"
    if length.shape != (count,) or length.dtype.kind not in "iuf" or (length != np.round(length)).any():
        raise InputError(
            f"{SOURCE}: {name} is {length.dtype}, {length.shape}; it must have a whole number for each series."
        )
    if (odd := (length < 1) | (length > steps)).any():
        raise InputError(f"{SOURCE}: {name} has {int(odd.sum())} values that are not 1 to {steps}{first_places(odd)}.")
    return length.astype(np.int64)


def _cut_and_filled(
    series: np.ndarray, steps: np.ndarray, most: int, config: SetsConfig, name: str, notes: list[str]
) -> np.ndarray:
    if (longer := steps > most).any():
        if config.longer != "cut":
            raise InputError(
                f"data.length = {most}: {int(longer.sum())} series of {name} have more steps{first_places(longer)}; "
                "set data.longer = 'cut'."
            )
        notes.append(f"{int(longer.sum())} series of {name} have more than {most} steps and are cut at the end")
    width = min(most, series.shape[2])
    values = np.full((len(series), series.shape[1], most), np.nan, np.float32)
    values[:, :, :width] = series[:, :, :width]
    steps = last_steps(values)
    _refuse_empty(steps, name)
    inside = np.arange(most) < steps[:, None]
    gaps = np.isnan(values) & inside[:, None]
    if gaps.any():
        if config.missing not in ("zero", "hold"):
            said = "" if config.missing is None else f"data.missing = {config.missing!r}: "
            raise InputError(
                f"{said or f'{SOURCE}: '}{int(gaps.sum())} values of {name} are missing (NaN) before the end of their "
                f"series{first_places(gaps)}; set data.missing = 'zero' or 'hold'."
            )
        how = "0 after scaling" if config.missing == "zero" else "the value before"
        notes.append(f"{int(gaps.sum())} values of {name} are missing; each becomes {how}")
        if config.missing == "hold":
            values = _held(values)
    return np.where(inside[:, None], values, np.float32(np.nan))


def _held(values: np.ndarray) -> np.ndarray:
    """Return each missing value as the last one before it; those at the start stay missing, and become the mean."""
    here = ~np.isnan(values)
    last = np.maximum.accumulate(np.where(here, np.arange(values.shape[2]), -1), axis=2)
    held = np.take_along_axis(values, np.maximum(last, 0), axis=2)
    return np.where(last >= 0, held, np.float32(np.nan))


def padded_series(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return series of C x T or T steps as one array, N x C x T, NaN behind their ends, and their lengths, N."""
    lengths = np.array([one.shape[-1] for one in series], np.int64)
    channels = series[0].shape[0] if series[0].ndim == 2 else 1
    padded = np.full((len(series), channels, max(1, int(lengths.max()))), np.nan)
    for target, one in zip(padded, series, strict=True):
        target[:, : one.shape[-1]] = one
    return as_float32(padded), lengths

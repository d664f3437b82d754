"""Whatever arrays a set has: they are refused in one line, or encoded as finite batches of the form that models get."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings

from fedkd.config import SetsConfig
from fedkd.data.arrays import from_arrays
from fedkd.data.codec import fit
from fedkd.data.encoder import Encoder
from fedkd.data.samples import checked
from fedkd.errors import InputError

TYPES = ["u1", "u2", "i4", "i8", "f2", "f4", "f8", "b1", "U1", "S2", "c8", "M8[s]", ">f8", ">u2"]


@st.composite
def an_array(draw: st.DrawFn, count: int, dimensions: int, types: list[str]) -> np.ndarray:
    shape = (count, *(draw(st.integers(1, 5)) for _ in range(dimensions - 1)))
    if draw(st.integers(0, 9)) == 0:
        shape = (count, *draw(st.lists(st.integers(0, 5), max_size=4)))
    kind = np.dtype(draw(st.sampled_from(types if draw(st.integers(0, 9)) else TYPES)))
    made = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 9, shape).astype(kind)
    if kind.kind == "f" and made.size and draw(st.booleans()):
        odd = [np.nan, np.inf, -1e4, 0.5, 1e39 if kind.itemsize == 8 else 1.0]
        made.flat[:: draw(st.integers(1, 4))] = draw(st.sampled_from(odd))
    return made


LAYOUTS = {
    "image": (st.integers(3, 4), ["u1", "u2", "f4", ">f8"]), "table": (st.just(2), ["f8", "f4", "i4", "u1"]),
    "series": (st.integers(2, 3), ["f2", "f4", "f8", "i4"]), "tokens": (st.just(2), ["i4", "i8", "u1"]),
    "array": (st.integers(1, 5), ["f4", ">f8", "i8", "u1", "b1"]),
}  # fmt: skip


@st.composite
def sets(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draw arrays that mostly fit together."""
    count, tests = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(sorted(LAYOUTS)))
    dimensions, types = LAYOUTS[kind]
    x = draw(an_array(count, draw(dimensions), types))
    alike = x.size and draw(st.integers(0, 9))
    other = np.resize(x, (tests, *x.shape[1:])) if alike else draw(an_array(tests, max(x.ndim, 1), types))
    found = {"x_train": x, "x_test": other, "y_train": np.arange(count) % 2, "y_test": np.arange(tests) % 2}
    for part, number in (("train", count), ("test", tests)):
        if draw(st.integers(0, 3)) == 0:
            found[f"length_{part}"] = np.full(number, draw(st.integers(-1, 6)))
    if draw(st.integers(0, 3)) == 0:
        names = ["y_train", "node_train", "kind", "classes", "words", "columns", "channels", "node_names"]
        found[draw(st.sampled_from(names))] = draw(an_array(draw(st.integers(0, 5)), 1, TYPES))
    options = {
        "kind": draw(st.sampled_from([None, kind, kind, kind, *LAYOUTS])),
        "missing": draw(st.sampled_from([None, "zero", "hold"])),
        "length": draw(st.none() | st.integers(1, 6)),
        "longer": draw(st.sampled_from([None, "cut", "refuse"])),
    }
    return found, options


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(sets())
def test_arrays_are_refused_or_encoded(drawn: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    arrays, options = drawn
    try:
        data = checked(from_arrays(arrays, SetsConfig(**options), "s"), "s")
        spec = data.about
        codec = fit(spec, data.train.inputs, np.arange(len(data.train.labels)))
    except InputError:
        return
    encoder = Encoder(codec, torch.device("cpu"))
    for part in (data.train, data.test):
        if spec.kind == "image" and part.inputs.shape[1:] != spec.shape:
            continue  # `reshape` refuses it or changes it
        batch = encoder(torch.from_numpy(np.ascontiguousarray(part.inputs)))
        assert batch.shape == (len(part.labels), *codec.form.shape)
        assert bool(torch.isfinite(batch).all())
        if spec.kind == "series":
            assert bool((batch[:, -1].sum(1) >= 1).all())
        if spec.kind == "tokens":
            assert int(batch.max()) < codec.form.vocabulary
            assert bool((batch[:, 0] != 0).all())

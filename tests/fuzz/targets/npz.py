"""Sets in NumPy archives: damaged archives, and members whose headers claim anything."""

from __future__ import annotations

import io
import zipfile

import numpy as np
from hypothesis import strategies as st

from fedkd.data.npz import from_npz
from fedkd.data.samples import checked
from fuzz.frame import new_folder, only_refusals
from fuzz.mutations import ODD, damaged

ARRAYS = {
    "x_train": np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8), "y_train": np.arange(12) % 3,
    "x_test": np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8), "y_test": np.arange(6) % 3,
    "classes": np.array(["a", "b", "c"]),
}  # fmt: skip


def _member(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    """Return an archive of these members."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return made.getvalue()


MEMBERS = {name: _member(array) for name, array in ARRAYS.items()}


@st.composite
def _claims(draw: st.DrawFn) -> bytes:
    """Return an archive with an array whose header was written anew."""
    header = {
        "descr": draw(st.sampled_from(["|u1", "<i8", "<U1", "|S0", "|O", "<f4", ">i8", "<U99999999", "x", "|V8"])),
        "fortran_order": draw(st.booleans()),
        "shape": tuple(draw(st.lists(st.sampled_from([0, 1, 3, 6, 8, 12, 10**6, 10**18, -1, 2**64]), max_size=5))),
    }
    text = repr(header if draw(st.booleans()) else draw(ODD)).encode("utf-8", "replace") + b"\n"
    body = b"\x93NUMPY" + draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\xff\x00"]))
    body += len(text).to_bytes(2 if body[6] == 1 else 4, "little") + text + draw(st.binary(max_size=400))
    return archive({**MEMBERS, draw(st.sampled_from(sorted(MEMBERS))): body})


@st.composite
def _members(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(sorted(MEMBERS)))
    return archive({**MEMBERS, name: draw(damaged(MEMBERS[name]))})


INPUTS = damaged(archive(MEMBERS)) | _members() | _claims()


def target(drawn: bytes) -> None:
    with new_folder() as folder, only_refusals():
        (folder / "s.npz").write_bytes(drawn)
        checked(from_npz(folder / "s.npz"), "npz:s.npz")

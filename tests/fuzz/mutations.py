"""Ways to damage what was whole: bytes, and values of JSON and TOML."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

PLACES = st.integers(0, 2**31)

JUNK = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"\x00" * 8, b"\xff" * 8, b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"\xff\xfe", b"1" * 5000]),
)

ODD = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -1.5, 1e300, float("nan"), float("inf"),
         "", "x", "\x1b[2J\x07", "a\nb", "x" * 5000, "\ud800", "é\u202e", "<script>", "=1+1", "../../etc/passwd",
         [], [1], [[]], [[1, 2], [3]], ["a"], {}, {"a": 1}, {"a": {"b": []}}]
    ),
    st.integers(), st.floats(), st.text(max_size=8),
)  # fmt: skip
# a table of TOML has neither null, nor halves of characters
ODD_OF_TOML = ODD.filter(lambda value: value is not None and value != "\ud800")


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return bytes with up to three damages: a bit, a cut, a piece that is inserted, doubled or taken out."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        first, second = (draw(PLACES) % (len(content) + 1) for _ in range(2))
        low, high = sorted((first, second))
        kind = draw(st.sampled_from(["bit", "bit", "cut", "insert", "double", "out", "replace"]))
        if kind == "bit" and low < len(content):
            flipped = content[low] ^ (1 << draw(st.integers(0, 7)))
            content = content[:low] + bytes([flipped]) + content[low + 1 :]
        elif kind == "cut":
            content = content[:low]
        elif kind == "insert":
            content = content[:low] + draw(JUNK) + content[low:]
        elif kind == "double":
            content = content[:high] + content[low:]
        elif kind == "out":
            content = content[:low] + content[high:]
        else:
            piece = draw(JUNK)
            content = content[:low] + piece + content[low + len(piece) :]
    return content


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


@st.composite
def with_odd_values(draw: st.DrawFn, whole: Any, odd: st.SearchStrategy[Any] = ODD) -> Any:
    """Return a value of JSON in which up to three parts are another, missing, renamed, nested or doubled."""
    made = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(made)
        if not places:
            break
        *path, last = places[draw(PLACES) % len(places)]
        inner = made
        for key in path:
            inner = inner[key]
        kind = draw(st.sampled_from(["other", "other", "other", "gone", "renamed", "nested", "double"]))
        if kind == "other":
            inner[last] = copy.deepcopy(draw(odd))  # what is drawn is shared with later cases
        elif kind == "gone":
            del inner[last]
        elif kind == "renamed" and isinstance(inner, dict):
            inner[draw(st.text(max_size=6))] = inner.pop(last)
        elif kind == "nested":
            inner[last] = draw(st.sampled_from([[inner[last]], {"x": inner[last]}]))
        elif isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
    return made

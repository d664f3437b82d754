"""The changes of `make mutants`: each kind once, in its place, and nothing where no code runs."""

from __future__ import annotations

from mutants import mutants_of, mutated

SOURCE = '''\
"""Text 1 > 0."""
def f(x: "Literal[1]", y: str = "ä", z: bool = True) -> list[2]:
    if not x >= 3 and y in z:
        x += 2.0 * x
    return zip(x, y, strict=True), f"{x + 1}"
'''


def test_each_small_change_is_made_in_its_place() -> None:
    found = {(m.line, m.old, m.new): mutated(SOURCE, m).splitlines() for m in mutants_of("f.py", SOURCE)}
    assert {change: text[change[0] - 1].strip() for change, text in found.items()} == {
        (2, "'ä'", "('äx')"): """def f(x: "Literal[1]", y: str = ('äx'), z: bool = True) -> list[2]:""",
        (2, "True", "(False)"): """def f(x: "Literal[1]", y: str = "ä", z: bool = (False)) -> list[2]:""",
        (3, "not x >= 3 and y in z", "(not x >= 3 or y in z)"): "if (not x >= 3 or y in z):",
        (3, "not x >= 3", "(x >= 3)"): "if (x >= 3) and y in z:",
        (3, "x >= 3", "(x > 3)"): "if not (x > 3) and y in z:",
        (3, "3", "(4)"): "if not x >= (4) and y in z:",
        (3, "3", "(6)"): "if not x >= (6) and y in z:",
        (3, "y in z", "(y not in z)"): "if not x >= 3 and (y not in z):",
        (4, "x += 2.0 * x", "pass"): "pass",
        (4, "x += 2.0 * x", "x -= 2.0 * x"): "x -= 2.0 * x",
        (4, "2.0 * x", "(2.0 / x)"): "x += (2.0 / x)",
        (4, "2.0", "(3.0)"): "x += (3.0) * x",
        (4, "2.0", "(4.0)"): "x += (4.0) * x",
    }
    assert all(len(text) == 5 for text in found.values())

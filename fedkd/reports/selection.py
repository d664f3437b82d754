"""Which strategies a table or a page shows, in which order and under which names; the words of the options for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import InputError, nearest, on_one_line
from ..runs.results import Arm


def arms_named(arms: Iterable[Arm], wanted: str, names: Mapping[str, str]) -> list[Arm]:
    """Return the arms with this name, this strategy, or this name for reports (see `arranged`)."""
    found = []
    for arm in arms:
        words = {arm.name, arm.runs[0].strategy}
        if wanted in words | {names[word] for word in words & names.keys()}:
            found.append(arm)
    return found


def arranged(arms: Sequence[Arm], names: Mapping[str, str], rows: Sequence[str]) -> list[tuple[Arm, Arm]]:
    """Return the arms of `rows` in this order, by default all, each with the arm under the name for reports.

    `names`: from the name of an arm, or of a strategy with one arm, to its name for reports. `rows`: names of arms, of
    strategies (all their arms), or names for reports. Raises InputError for names that no arm or several arms have, and
    if two of them have one name.
    """
    new = {}
    for wanted, name in names.items():
        found = arms_named(arms, wanted, {})
        if len(found) != 1:
            raise _refused("--name", wanted, arms, several=bool(found))
        new[found[0].name] = on_one_line(name, 200)
    every = [(arm, Arm(new.get(arm.name, arm.name), arm.runs)) for arm in arms]
    known = [one.name for _, one in every]
    if twice := [name for number, name in enumerate(known) if name in known[:number]]:
        raise InputError(f"--name: two strategies are named {twice[0]!r}; give each a name of its own.")
    picked: dict[str, None] = {}
    for wanted in rows:
        found = arms_named(arms, wanted, new)
        if not found:
            raise _refused("--rows", wanted, arms)
        picked |= dict.fromkeys(arm.name for arm in found)
    return [one for name in picked for one in every if one[0].name == name] if rows else every


def of_group(arms: Sequence[Arm], names: Mapping[str, str], rows: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the names and the rows that a group of arms has: of several groups, some may lack a strategy."""
    here = {wanted: name for wanted, name in names.items() if arms_named(arms, wanted, {})}
    return here, [wanted for wanted in rows if arms_named(arms, wanted, here)]


def check_known(groups: Sequence[Sequence[Arm]], names: Mapping[str, str], rows: Sequence[str]) -> None:
    """Raise InputError for a name or a row that no group of arms has."""
    every = [arm for arms in groups for arm in arms]
    for option, words, known in (("--name", names, {}), ("--rows", rows, names)):
        for wanted in words:
            if not arms_named(every, wanted, known):
                raise _refused(option, wanted, every)


def names_in(texts: Sequence[str], groups: Sequence[Sequence[Arm]]) -> dict[str, str]:
    """Return the names in texts `strategy=Name`; both sides may contain a `=`. Raises InputError for other texts."""
    every = [arm for arms in groups for arm in arms]
    found = {}
    for text in texts:
        ends = [place for place, sign in enumerate(text) if sign == "="]
        end = next((place for place in ends if arms_named(every, text[:place], {})), text.find("="))
        name = text[end + 1 :].strip()
        if end < 1 or not name:
            raise InputError(f"--name {on_one_line(text, 100)!r}: write it as strategy=Name.")
        found[text[:end]] = name
    return found


def words_in(text: str) -> list[str]:
    """Return the parts between commas, but not those within brackets: a name may be `fedprox (mu 0.1, lr 0.5)`."""
    parts, depth = [""], 0
    for sign in text:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _refused(option: str, wanted: str, arms: Iterable[Arm], *, several: bool = False) -> InputError:
    known = [arm.name for arm in arms]
    what = "several strategies are that; " if several else "no strategy is that"
    end = f"valid: {', '.join(map(repr, known))}." if several else nearest(wanted, known)
    return InputError(f"{option} {on_one_line(wanted, 100)!r}: {what}{end}")

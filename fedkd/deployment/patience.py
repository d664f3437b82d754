"""How long the server waits for replies of real sites without a `timeout`, and what it reports meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

FIRST_LIMIT = 3600.0  # seconds for an action of which no site has sent a reply yet
LEAST_LIMIT = 600.0
MOST_LIMIT = 43_200.0  # what Flower would wait
TIMES_LONGEST = 5  # how many times the longest time for a reply the limit is
FIRST_NOTICE = 60.0  # seconds of waiting until the first line about it
NEXT_NOTICE = 600.0  # seconds between two lines
_MOST_NAMED = 5  # sites that a line names


def time_limit(longest: Sequence[float]) -> float:
    """Return the seconds in which all replies to a request must come.

    `longest`: of each site, the longest time, in seconds, that its reply to this action has taken so far, also a late
    one. The limit is `TIMES_LONGEST` times their median (the lower one), so that no few sites can stretch it, but
    `LEAST_LIMIT` at least and `MOST_LIMIT` at most; `FIRST_LIMIT` if nothing is known.
    """
    if not longest:
        return FIRST_LIMIT
    return float(round(min(max(TIMES_LONGEST * median_low(longest), LEAST_LIMIT), MOST_LIMIT)))


def waiting_line(group: str, action: str, names: Sequence[str], seconds: float) -> str:
    """Return a line about the sites whose replies a round is waiting for."""
    shown, more = list(names[:_MOST_NAMED]), len(names) - _MOST_NAMED
    if more > 0:
        shown.append(f"{more} other{'s' if more > 1 else ''}")
    text = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return f"round {group}, {action!r}: waiting for {text} ({seconds:.0f} s)"

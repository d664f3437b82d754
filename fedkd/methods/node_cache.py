"""Large arrays that the server sends and nodes cache, so that each node gets them only once."""

from __future__ import annotations

from ..core.round import Round
from ..errors import RunError
from ..messages.merging import Merge, weighted_mean
from ..messages.payload import Expected, Payload


def ask_cached(
    federation: Round,
    action: str,
    without: Payload,
    complete: Payload,
    expect: Expected,
    cached: set[int],
    merge: Merge = weighted_mean,
) -> tuple[Payload, set[int]]:
    """Ask the cohort, and send the arrays only to nodes that lack them; return the merged reply and the new `cached`.

    `without`: the request without the arrays, for nodes in `cached`; `complete`: with them, for all others. The new
    `cached` contains the nodes that have sent a good reply to a request with the newest arrays. A node that fails may
    have lost them, and gets them in its next round. If too few replies are good, for example after a restart of all
    sites, the cohort gets them immediately. Raises RunError if there are still too few good replies.
    """
    down = {node: without if node in cached else complete for node in federation.cohort}
    try:
        merged = federation.ask(action, down, expect=expect, merge=merge)
    except RunError:
        lost = [node for node in _failed(federation, action) if down[node] is without]
        if not lost:
            raise
        merged = federation.ask(action, dict.fromkeys(lost, complete), expect=expect, merge=merge)
        return merged, cached - set(federation.cohort)  # it is not known which nodes of the cohort have them now
    return merged, (cached | set(federation.cohort)) - _failed(federation, action)


def _failed(federation: Round, action: str) -> set[int]:
    return {failure["node"] for failure in federation.record.failures if failure["action"] == action}

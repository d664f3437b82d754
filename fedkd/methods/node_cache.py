"""Large arrays that the server shares and nodes cache, so that they travel to each node once."""

from __future__ import annotations

from ..core.round import Round
from ..errors import RunError
from ..messages.merging import weighted_mean
from ..messages.payload import Expected, Payload


def ask_cached(
    federation: Round, action: str, without: Payload, complete: Payload, expect: Expected, cached: set[int]
) -> tuple[Payload, set[int]]:
    """Ask the cohort, sending the shared arrays only to nodes that lack them; return the weighted mean and the cache.

    `without`: the request without the arrays, for nodes in `cached`; `complete`: with them, for all others. The second
    result is the new `cached`: the nodes whose reply to a request with the newest arrays was good. A node that fails
    may have lost them, and gets them in its next round; or at once where too few replies are good, as after a restart
    of all sites. Raises RunError where that does not help.
    """
    down = {node: without if node in cached else complete for node in federation.cohort}
    try:
        merged = federation.ask(action, down, expect=expect, merge=weighted_mean)
    except RunError:
        lost = [node for node in _failed(federation, action) if down[node] is without]
        if not lost:
            raise
        merged = federation.ask(action, dict.fromkeys(lost, complete), expect=expect, merge=weighted_mean)
        return merged, cached - set(federation.cohort)  # which of the cohort have them now is not known
    return merged, (cached | set(federation.cohort)) - _failed(federation, action)


def _failed(federation: Round, action: str) -> set[int]:
    return {failure["node"] for failure in federation.record.failures if failure["action"] == action}

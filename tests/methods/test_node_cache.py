"""Large arrays go to nodes that lack them, once, and again where they may be lost."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import Mock

import pytest

from fedkd import Expected, Payload, Round, RunError, ask_cached, weighted_mean
from fedkd.core.record import Record

WITHOUT, COMPLETE = Payload(numbers={"round": 1.0}), Payload(numbers={"round": 1.0}, strings={"large": "x"})


def asked(cached: set[int], failing: set[int], answers: list[Any]) -> tuple[list[dict[int, bool]], Any]:
    """Return which requests were made, and to which nodes with the arrays; and the result."""
    record, requests = Record(1, [0, 1, 2]), []
    record.failures.append({"node": 1, "action": "earlier", "reason": "x"})

    def ask(action: str, down: dict[int, Payload], expect: Expected, merge: object) -> Payload:
        assert (action, merge) == ("fit", weighted_mean)
        assert all(payload is WITHOUT or payload is COMPLETE for payload in down.values())
        requests.append({node: payload is COMPLETE for node, payload in down.items()})
        if len(requests) == 1:
            record.failures += [{"node": node, "action": "fit", "reason": "x"} for node in sorted(failing)]
        return cast(Payload, answers[len(requests) - 1]())

    federation = cast(Round, Mock(cohort=[0, 1, 2], record=record, ask=ask))
    return requests, lambda: ask_cached(federation, "fit", WITHOUT, COMPLETE, Expected(), cached)


def answer() -> Payload:
    return Payload(numbers={"loss": 3.0})


def no_answer() -> Payload:
    raise RunError("too few")


def test_nodes_that_have_the_arrays_do_not_get_them_and_those_that_fail_lose_them() -> None:
    requests, call = asked({1, 2, 7}, {2}, [answer])
    merged, cached = call()
    assert requests == [{0: True, 1: False, 2: False}]
    assert merged.numbers == {"loss": 3.0}
    assert cached == {0, 1, 7}  # the failure of node 1 was another request's


def test_nodes_that_have_lost_them_are_asked_again_at_once() -> None:
    requests, call = asked({1, 2, 7}, {0, 2}, [no_answer, answer])
    merged, cached = call()
    assert requests == [{0: True, 1: False, 2: False}, {2: True}]
    assert (merged.numbers, cached) == ({"loss": 3.0}, {7})


@pytest.mark.parametrize(("failing", "answers"), [({0}, [no_answer]), ({2}, [no_answer, no_answer])])
def test_too_few_replies_are_an_error_where_no_node_may_have_lost_them_or_all_have(
    failing: set[int], answers: list[Any]
) -> None:
    requests, call = asked({1, 2}, failing, answers)
    with pytest.raises(RunError, match="too few"):
        call()
    assert len(requests) == len(answers)

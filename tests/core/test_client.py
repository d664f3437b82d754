"""The client half: which of its methods are requests."""

from __future__ import annotations

from fedkd import Client, Payload
from fedkd.core.client import actions


def test_actions_are_the_methods_that_take_a_request() -> None:
    class Mine(Client):
        def extract(self, request: Payload) -> Payload:
            return request

        def _hidden(self, request: Payload) -> Payload:
            return request

        def helper(self, request: Payload, more: int) -> None: ...

    assert actions(Mine) == ["evaluate", "extract"]

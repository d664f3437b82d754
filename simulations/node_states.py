"""The states of simulated nodes: what a request leaves counts once the server has accepted its reply."""

from __future__ import annotations

from typing import Generic, TypeVar

State = TypeVar("State")


class NodeStates(Generic[State]):
    """The states of nodes, and until a reply is settled, the state of before its request.

    `State`: the form in which an engine stores them. A node without a state is not in `current`.
    """

    def __init__(self) -> None:
        self.current: dict[int, State] = {}
        self._before: dict[int, State | None] = {}  # of nodes whose last reply is not settled

    def keep(self, node: int, state: State | None) -> None:
        """Store the state that a request has left."""
        self._before[node] = self.current.get(node)
        self._set(node, state)

    def settle(self, node: int, accepted: bool) -> None:
        """Drop the state of before the node's last request, or return to it if the reply was not accepted.

        A request that left nothing, because no reply came, changes nothing.
        """
        if node in self._before:
            before = self._before.pop(node)
            if not accepted:
                self._set(node, before)

    def restore(self, states: dict[int, State]) -> None:
        """Replace all states."""
        self.current, self._before = states, {}

    def _set(self, node: int, state: State | None) -> None:
        if state is None:
            self.current.pop(node, None)
        else:
            self.current[node] = state

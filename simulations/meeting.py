"""Lets clients run side by side in one thread: each runs until it has work, then waits for the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from fedkd.core.environment import Environment
from fedkd.learning.work import Work
from fedkd.models.build import fill

from .kinds import Outcome

Result = TypeVar("Result")


@dataclass
class Waiting:
    """A client that waits for its work, with a model with these parameters and buffers.

    `key`: what clients have in common to work together. `trainable`: which of the model's parameters are.
    """

    work: Work
    key: Hashable
    state: dict[str, Tensor]
    trainable: list[bool]


KeyOf = Callable[[Work], Hashable | None]
DoAll = Callable[[list[Waiting]], Sequence[Outcome | None]]  # None: this client works alone


def meet(environment: Environment, calls: Sequence[Callable[[], Result]], key_of: KeyOf, do_all: DoAll) -> list[Result]:
    """Call all functions, which run clients of this environment; return their results in their order.

    `key_of` is asked when a client has work; if it returns None, the client works alone, at once. When all
    others that have not ended wait, `do_all` gets their work, in the order of the functions, and returns what each
    gets. Each function continues torch's default streams, and finds its model objects, as it has left them. An
    exception of a function ends all of them.
    """
    clients = [_Client(environment, call) for call in calls]
    before = environment.do, environment.lent
    environment.do = partial(_do_with_others, key_of)
    try:
        waiting = [client for client in clients if client.go_on(_BEGIN)]
        while waiting:
            outcomes = deque(do_all([client.waiting for client in waiting]))
            waiting = [client for client in waiting if client.go_on(outcomes.popleft())]
    finally:
        environment.do, environment.lent = before
        for client in clients:
            client.leave()
    return [client.result for client in clients]


_BEGIN = object()


def set_trainable(model: nn.Module, trainable: Sequence[bool]) -> None:
    """Set which parameters of a model are trained."""
    for parameter, wanted in zip(model.parameters(), trainable, strict=True):
        parameter.requires_grad_(wanted)


def _do_with_others(key_of: KeyOf, work: Work) -> Any:
    """Wait for the work together with other clients, or do it alone; return its result."""
    main, model = getcurrent().parent, work.model
    key = None if main is None else key_of(work)  # None: not a client
    if main is None or key is None:
        return work.alone()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    outcome: Outcome | None = main.switch(Waiting(work, key, state, trainable))
    set_trainable(model, trainable)
    if outcome is None:
        fill(model, state)
        return work.alone()
    fill(model, outcome.state)
    model.train(outcome.training)
    return outcome.result


class _Client:
    """A function that stops where it waits, with what torch keeps for it meanwhile."""

    def __init__(self, environment: Environment, call: Callable[[], Any]) -> None:
        self._environment = environment
        self._lent: dict[str, nn.Module] = {}
        self._states: dict[str, dict[str, Tensor]] = {}
        self._greenlet = greenlet(call)
        self._kept = _modes()
        self.waiting: Any = None
        self.result: Any = None

    def go_on(self, outcome: Any) -> bool:
        """Run until it waits, or to the end; return whether it waits."""
        self.waiting = None
        found = self._inside(self._greenlet.switch if outcome is _BEGIN else partial(self._greenlet.switch, outcome))
        if self._greenlet.dead:
            self.result = found
            return False
        self.waiting = found
        self._states = {
            name: {n: tensor.clone() for n, tensor in model.state_dict().items()}
            for name, model in self._lent.items()
            if model is not found.work.model
        }
        return True

    def leave(self) -> None:
        """End it if it has not ended."""
        if self._greenlet and not self._greenlet.dead:
            self._inside(partial(self._greenlet.throw, GreenletExit))

    def _inside(self, switch: Callable[[], Any]) -> Any:
        """Switch to it, with the torch modes and the model objects that it has left."""
        before = _modes()
        _set_modes(self._kept)
        self._environment.lent = self._lent
        for name, state in self._states.items():
            fill(self._lent[name], state)
        self._states = {}
        try:
            return switch()
        finally:
            self._kept = _modes()
            _set_modes(before)


Modes = tuple[Tensor, Tensor | None, bool]


def _modes() -> Modes:
    """Return the states of torch's default streams, and whether gradients are computed."""
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), on_gpu, torch.is_grad_enabled()


def _set_modes(modes: Modes) -> None:
    on_cpu, on_gpu, gradients = modes
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu)
    torch.set_grad_enabled(gradients)

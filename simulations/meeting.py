"""Lets clients run side by side in one thread: each runs until it trains or predicts, then waits for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

from fedkd.core.environment import Environment
from fedkd.learning.evaluation import Prediction, predict_alone
from fedkd.learning.stacked_training import Trained
from fedkd.learning.training import LocalTraining, train_alone
from fedkd.models.build import fill

Result = TypeVar("Result")


@dataclass
class Waiting:
    """A client that waits for its training or its prediction, of a model with these parameters and buffers."""

    work: LocalTraining | Prediction
    state: dict[str, Tensor]


Outcome = Trained | Tensor | Exception
DoAll = Callable[[list[Waiting]], list[Outcome]]


def meet(environment: Environment, calls: Sequence[Callable[[], Result]], do_all: DoAll) -> list[Result]:
    """Call all functions, which run clients of this environment; return their results in their order.

    When all of them that have not ended wait, `do_all` gets their work, in the order of the functions, and returns for
    each what it has learned, its outputs, or the error that its client gets. Each function continues torch's default
    streams where it has stopped. An exception of a function ends all of them.
    """
    clients = [_Client(call) for call in calls]
    before = environment.train, environment.predict
    environment.train, environment.predict = _train_with_others, _predict_with_others
    try:
        waiting = [client for client in clients if client.go_on(None)]
        while waiting:
            outcomes = do_all([client.waiting for client in waiting])
            waiting = [client for client, outcome in zip(waiting, outcomes, strict=True) if client.go_on(outcome)]
    finally:
        environment.train, environment.predict = before
        for client in clients:
            client.leave()
    return [client.result for client in clients]


def _train_with_others(local: LocalTraining) -> float:
    """Wait for the training together with other clients; return the mean loss of the last epoch."""
    if getcurrent().parent is None:  # not a client
        return train_alone(local)
    trained: Trained = _wait(_waiting(local))
    fill(local.model, trained.weights)
    local.model.train()
    return trained.loss


def _predict_with_others(asked: Prediction) -> Tensor:
    """Wait for the prediction together with other clients; return the outputs."""
    if getcurrent().parent is None:
        return predict_alone(asked)
    waiting = _waiting(asked)
    outputs: Tensor = _wait(waiting)
    fill(asked.model, waiting.state)
    asked.model.eval()
    return outputs


def _waiting(work: LocalTraining | Prediction) -> Waiting:
    return Waiting(work, {name: tensor.clone() for name, tensor in work.model.state_dict().items()})


def _wait(waiting: Waiting) -> Any:
    main = getcurrent().parent
    assert main is not None
    outcome = main.switch(waiting)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


class _Client:
    """A function that stops where it waits, with what torch keeps for it meanwhile."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._greenlet = greenlet(call)
        self._kept = _modes()
        self.waiting: Any = None
        self.result: Any = None

    def go_on(self, outcome: Outcome | None) -> bool:
        """Run until it waits, or to the end; return whether it waits."""
        before = _modes()
        _set_modes(self._kept)
        try:
            found = self._greenlet.switch() if outcome is None else self._greenlet.switch(outcome)
        finally:
            self._kept = _modes()
            _set_modes(before)
        if self._greenlet.dead:
            self.result = found
        else:
            self.waiting = found
        return not self._greenlet.dead

    def leave(self) -> None:
        """End it if it has not ended."""
        if self._greenlet and not self._greenlet.dead:
            before = _modes()
            _set_modes(self._kept)
            try:
                self._greenlet.throw(GreenletExit)
            finally:
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

"""Does the work of clients that meet: together where it can be stacked, else one client at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from fedkd.config import NamedTable
from fedkd.core.environment import Environment
from fedkd.errors import InputError
from fedkd.learning.evaluation import Prediction, predict_alone
from fedkd.learning.stacked_memory import bytes_of_client, free_bytes
from fedkd.learning.stacked_models import NotStacked, Path, folding_is_sound, why_not_folded, why_not_stacked
from fedkd.learning.stacked_prediction import predict_stacked, prediction_key
from fedkd.learning.stacked_training import Trained, key_of, train_stacked, why_alone
from fedkd.learning.training import LocalTraining, train_alone
from fedkd.messages.merging import BLOCK
from fedkd.models.build import fill

from .meeting import Outcome, Result, Waiting, meet

Item = TypeVar("Item")
ClientsPerStep = Annotated[int, Field(ge=1)] | Literal["auto"]
WantedPath = Literal["auto", "vmap", "folded"]
_MOST_ON_CPU = 10  # clients of a step: more gain nothing there
_SHARE = 0.85  # of the free memory, for the clients of a step


class Stacker:
    """Runs clients of this process side by side, and does their work together.

    `limit`: the most clients of a step; it falls to the half when the memory does not suffice. `events`: what happened
    since they were last read.
    """

    def __init__(self, environment: Environment, limit: int, path: WantedPath) -> None:
        """Take the paths of the config's models. Raises InputError for a model that cannot be folded, if it must."""
        self.limit = limit
        self.events: list[str] = []
        self._environment = environment
        self._wanted = path
        self._paths: dict[int, Path] = {}
        self._alone: dict[Hashable, str] = {}  # why clients of a kind work alone
        self._said: set[str] = set()
        for number in range(len(environment.config.model.architectures)):
            self._path_of(environment.model(number))

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Call functions that run clients, side by side; return their results in their order."""
        return meet(self._environment, calls, self._do_all)

    def _do_all(self, waiting: list[Waiting]) -> list[Outcome]:
        """Return what each client gets, or its error."""
        outcomes: list[Outcome | None] = [None] * len(waiting)
        groups: dict[Hashable, list[int]] = {}
        for place, one in enumerate(waiting):
            key, reason = _kind_of(one.work)
            reason = reason or self._alone.get(key)
            if reason is None:
                groups.setdefault(key, []).append(place)
            else:
                self._say_alone(reason)
                outcomes[place] = _alone(one)
        for key, places in groups.items():
            for place, outcome in zip(places, self._stacked(key, [waiting[p] for p in places]), strict=True):
                outcomes[place] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _stacked(self, key: Hashable, group: Sequence[Waiting]) -> list[Outcome]:
        """Do the work of clients of one kind, `limit` of them at a time."""
        if len(group) > (first := self.limit):
            return self._stacked(key, group[:first]) + self._stacked(key, group[first:])
        if len(group) == 1:
            return [_alone(group[0])]
        try:
            return _together(group, self._path_of(group[0].work.model))
        except NotStacked as error:
            self._alone[key] = str(error)
            self._say_alone(str(error))
            return [_alone(one) for one in group]
        except torch.OutOfMemoryError:
            pass  # outside of this block nothing holds the tensors of the attempt
        except Exception as error:
            return [error] * len(group)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self.limit = min(self.limit, (len(group) + 1) // 2)
        self._say(f"out of memory with {len(group)} clients in one step; from now on at most {self.limit}")
        return self._stacked(key, group)

    def _say_alone(self, reason: str) -> None:
        self._say(f"clients work one at a time: {reason}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.events.append(text)

    def _path_of(self, model: nn.Module) -> Path:
        if id(model) not in self._paths:
            reason = None if self._wanted == "vmap" else self._why_not_folded(model)
            if reason is not None and self._wanted == "folded":
                raise InputError(f"engine.path = 'folded': the model cannot be folded: {reason}; set 'vmap' or 'auto'.")
            self._paths[id(model)] = "vmap" if self._wanted == "vmap" or reason is not None else "folded"
        return self._paths[id(model)]

    def _why_not_folded(self, model: nn.Module) -> str | None:
        reason = why_not_folded(model)
        if reason is None and not folding_is_sound(model, self._environment.data.image_shape):
            reason = "its own forward mixes channels"
        return reason


def parted(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Yield successive parts of a list, each of this size, the last one perhaps smaller."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def blocks_of_step(clients: int) -> int:
    """Return how many blocks of merged replies a group has: whole ones, for at least this number of clients."""
    return -(-clients // BLOCK)


def note_clients(environment: Environment, clients: int) -> None:
    """Write the number of clients of a step into the run's config."""
    table = environment.config.engine
    chosen = {"name": table.name, **table.options, "clients_per_step": clients}
    environment.config = environment.config.model_copy(update={"engine": NamedTable.model_validate(chosen)})


def clients_of_step(environment: Environment, wanted: ClientsPerStep, share: float = 1.0) -> int:
    """Return how many clients train in one step: as many of a round's as the device's memory has room for.

    A cohort is parted evenly. On a CPU they are 10 at most. `share`: of the device, for this process.
    """
    if wanted != "auto":
        return wanted
    most = environment.config.cohort or environment.data.clients
    if environment.device.type == "cpu":
        most = min(most, _MOST_ON_CPU)
    largest = max(
        bytes_of_client(environment.model(number), environment.config.train, environment.data.image_shape)
        for number in range(len(environment.config.model.architectures))
    )
    room = max(1, min(most, int(_SHARE * share * free_bytes(environment.device) / largest)))
    return -(-most // -(-most // room))


def _kind_of(work: LocalTraining | Prediction) -> tuple[Hashable, str | None]:
    """Return what clients must have in common to do such work together, and why one can only do it alone."""
    if isinstance(work, LocalTraining):
        reason = why_alone(work)
        return None if reason else key_of(work), reason
    return prediction_key(work), why_not_stacked(work.model) or (None if len(work.data.labels) else "it has no images")


def _together(group: Sequence[Waiting], path: Path) -> list[Outcome]:
    trainings = [one.work for one in group if isinstance(one.work, LocalTraining)]
    asked = [one.work for one in group if isinstance(one.work, Prediction)]
    states = [one.state for one in group]
    return [*(train_stacked(trainings, states, path) if trainings else predict_stacked(asked, states, path))]


def _alone(one: Waiting) -> Outcome:
    """Do the work of one client; return what it gets, or its error."""
    model = one.work.model
    try:
        fill(model, one.state)
        if isinstance(one.work, Prediction):
            return predict_alone(one.work)
        value = train_alone(one.work)
    except Exception as error:
        return error
    return Trained(value, {name: tensor.clone() for name, tensor in model.state_dict().items()})

"""The vectorised engine: clients of one architecture train in one step, in this process.

Made for a GPU, which a step of one small model leaves nearly idle. Clients run as in the inline engine up to their
training; then those with the same kind of loss, optimiser and model train together. What cannot be stacked trains one
client at a time, and an event says why. Results are those of the inline engine up to rounding.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from flwr.app import Message
from pydantic import Field

from fedkd.config import NamedTable
from fedkd.core.environment import Device, Threads
from fedkd.core.setup import Setup
from fedkd.errors import InputError
from fedkd.learning.evaluation import Prediction, predict_alone
from fedkd.learning.stacked_models import Path, folding_is_sound, why_not_folded, why_not_stacked
from fedkd.learning.stacked_prediction import predict_stacked, prediction_key
from fedkd.learning.stacked_training import NotStacked, Trained, key_of, train_stacked, why_alone
from fedkd.learning.training import LocalTraining, train_alone
from fedkd.messages.arrays import owned
from fedkd.messages.arrival import Door
from fedkd.messages.merging import Block, Merge
from fedkd.models.build import fill

from .base import SimulationGrid
from .inline import InlineGrid
from .meeting import Outcome, Waiting, meet

ClientsPerStep = Annotated[int, Field(ge=1)] | Literal["auto"]
_ON_CPU = 10  # clients per step on a CPU, where more gain nothing


class VectorisedGrid(InlineGrid):
    """Clients of one exchange run in groups, in the order of the cohort. The groups do not depend on the machine."""

    def __init__(
        self,
        setup: Setup,
        *,
        threads: Threads = 1,
        device: Device = "auto",
        clients_per_step: ClientsPerStep = "auto",
        path: Literal["auto", "vmap", "folded"] = "auto",
    ) -> None:
        """Train `clients_per_step` clients in one step. `path`: how, see `stacked_models`; auto: folded where it can.

        What `auto` means is written into the run's config, so that a resumed run does the same. Raises InputError for
        a folded path of a model that has layers which it does not know.
        """
        super().__init__(setup, threads=threads, device=device)
        environment = self._environment
        self._shape = environment.data.image_shape
        most = environment.config.cohort or environment.data.clients
        self._clients = min(most, _ON_CPU) if clients_per_step == "auto" else clients_per_step
        self._wanted: Literal["auto", "vmap", "folded"] = path
        self._paths: dict[int, Path] = {}
        for number in range(len(environment.config.model.architectures)):
            self._path_of(environment.model(number))
        self._alone: dict[Hashable, str] = {}  # why clients of a kind train alone
        self._said: set[str] = set()
        table = environment.config.engine
        chosen = {"name": table.name, **table.options, "clients_per_step": self._clients}
        environment.config = environment.config.model_copy(update={"engine": NamedTable.model_validate(chosen)})

    def carry(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Run the clients group by group."""
        first = 0
        while first < len(messages):
            group = messages[first : first + self._clients]
            first += len(group)
            yield from meet(self._environment, [partial(self._owned, message) for message in group], self._do_all)

    def carry_merged(
        self, blocks: list[list[Message]], merge: Merge, door: Door, timeout: float | None
    ) -> Iterator[Block]:
        """Run the clients group by group, and merge their replies block by block."""
        return SimulationGrid.carry_merged(self, blocks, merge, door, timeout)

    def _owned(self, message: Message) -> Message:
        reply = self._call(message)
        if not reply.has_error():
            reply.content = owned(reply.content)  # the next client changes the model
        return reply

    def _do_all(self, waiting: list[Waiting]) -> list[Outcome]:
        """Do the work of clients, together where this is possible; return what each gets, or its error."""
        outcomes: list[Outcome | None] = [None] * len(waiting)
        groups: dict[Hashable, list[int]] = {}
        for place, one in enumerate(waiting):
            key, reason = _kind_of(one.work)
            reason = reason or self._alone.get(key)
            if reason is None:
                groups.setdefault(key, []).append(place)
            else:
                self._say(reason)
                outcomes[place] = _alone(one)
        for key, places in groups.items():
            for place, outcome in zip(places, self._stacked(key, [waiting[p] for p in places]), strict=True):
                outcomes[place] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _stacked(self, key: Hashable, group: Sequence[Waiting]) -> list[Outcome]:
        """Do the work of clients of one kind; in halves if the memory does not suffice for all of them."""
        if len(group) == 1:
            return [_alone(group[0])]
        try:
            return _together(group, self._path_of(group[0].work.model))
        except NotStacked as error:
            self._alone[key] = str(error)
            self._say(str(error))
            return [_alone(one) for one in group]
        except torch.OutOfMemoryError:
            pass  # outside of this block nothing holds the tensors of the attempt
        except Exception as error:
            return [error] * len(group)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        half = (len(group) + 1) // 2
        self._clients = min(self._clients, half)
        self._say(f"out of memory with {len(group)} clients in one step; from now on at most {half}")
        return self._stacked(key, group[:half]) + self._stacked(key, group[half:])

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            prefix = "" if reason.startswith("out of") else "clients train one at a time: "
            self._events.append({"event": prefix + reason})

    def _path_of(self, model: torch.nn.Module) -> Path:
        if id(model) not in self._paths:
            reason = None if self._wanted == "vmap" else why_not_folded(model)
            if self._wanted != "vmap" and reason is None and not folding_is_sound(model, self._shape):
                reason = "its own forward mixes channels"
            if reason is not None and self._wanted == "folded":
                raise InputError(f"engine.path = 'folded': the model cannot be folded: {reason}; set 'vmap' or 'auto'.")
            self._paths[id(model)] = "vmap" if self._wanted == "vmap" or reason is not None else "folded"
        return self._paths[id(model)]


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

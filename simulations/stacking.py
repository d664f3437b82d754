"""Does the work of clients that meet: together where it can be stacked, else one client at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import nn

from fedkd.config import NamedTable
from fedkd.core.environment import Environment
from fedkd.errors import InputError, described
from fedkd.learning.stacked_graphs import StepGraphs, record_graph
from fedkd.learning.stacked_memory import bytes_of_client, free_bytes
from fedkd.learning.stacked_models import NotStacked, Path, why_not_folded, why_not_stacked, why_unsound
from fedkd.learning.work import Work
from fedkd.messages.merging import BLOCK

from .kinds import Outcome, kind_of
from .meeting import Result, Waiting, meet, set_trainable
from .path_choice import WantedPath

Item = TypeVar("Item")
ClientsPerStep = Annotated[int, Field(ge=1)] | Literal["auto"]
_MOST_ON_CPU = 10  # clients of a step: more gain nothing there
_SHARE = 0.85  # of the free memory, for the clients of a step


class Fixed(NamedTuple):
    """Whether steps have fixed shapes: `cuda_graphs`: to be recorded; `compile`: to be compiled by torch."""

    cuda_graphs: bool
    compile: bool


class Stacker:
    """Runs clients of this process side by side, and does their work together.

    `limit`: the most clients of a step; it falls to the half when the memory does not suffice. `events`: what happened
    since they were last read.
    """

    def __init__(self, environment: Environment, limit: int, path: WantedPath, fixed: Fixed) -> None:
        """Take the paths of the config's models. Raises InputError for a model that cannot be folded, if it must."""
        self.limit = limit
        self.events: list[str] = []
        self._environment = environment
        self._wanted = "auto" if isinstance(path, list) else path  # of models that a method builds
        self._ways: dict[int, _Way] = {}
        self._said: set[str] = set()
        self._graphs: StepGraphs | None = None
        on_gpu = environment.device.type == "cuda"
        if fixed.compile or (fixed.cuda_graphs and on_gpu):
            record = record_graph if fixed.cuda_graphs and on_gpu else None
            self._graphs = StepGraphs(self._say, record, "inductor" if fixed.compile else None)
        if fixed.cuda_graphs and not on_gpu:
            self._say("engine.cuda_graphs has no effect on a CPU")
        for number in range(len(environment.config.model.architectures)):
            model = environment.model(number)
            self._ways[id(model)] = self._found_way(model, path[number] if isinstance(path, list) else path)

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Call functions that run clients, side by side; return their results in their order."""
        return meet(self._environment, calls, self._key_of, self._do_all)

    def _key_of(self, work: Work) -> Hashable | None:
        """Return what clients must have in common to do such work together, or None if one can only do it alone."""
        known = self._ways.get(id(work.model))
        reason = _why_alone(work) or (known.reason if known else None)
        key = None
        if reason is None:
            key = type(work), kind_of(work).key_of(work)
            try:
                hash(key)
            except TypeError:
                reason = "the constants of its loss cannot be compared, such as a list: use a tuple"
        if reason is not None:
            self._say_alone(reason)
            return None
        return key

    def _do_all(self, waiting: list[Waiting]) -> list[Outcome | None]:
        """Return what each client gets, or None if it works alone."""
        outcomes: list[Outcome | None] = [None] * len(waiting)
        groups: dict[Hashable, list[int]] = {}
        for place, one in enumerate(waiting):
            groups.setdefault(one.key, []).append(place)
        for places in groups.values():
            for place, outcome in zip(places, self._stacked([waiting[p] for p in places]), strict=True):
                outcomes[place] = outcome
        return outcomes

    def _stacked(self, group: Sequence[Waiting]) -> list[Outcome | None]:
        """Do the work of clients of one kind, `limit` of them at a time. What fails together is done alone.

        Nothing is remembered of a failure: a resumed run and each of Ray's workers must decide alike.
        """
        if len(group) > (first := self.limit):
            return self._stacked(group[:first]) + self._stacked(group[first:])
        alone: list[Outcome | None] = [None] * len(group)
        kind, model = kind_of(group[0].work), group[0].work.model
        if len(group) < kind.least:
            return alone
        set_trainable(model, group[0].trainable)
        way = _Way(model, "vmap", None) if kind.by_vmap else self._way_of(model)
        if way.reason is not None:
            self._say_alone(way.reason)
            return alone
        try:
            return [*kind.together([one.work for one in group], [one.state for one in group], way.path, self._graphs)]
        except NotStacked as error:
            self._say_alone(str(error))
            return alone
        except torch.OutOfMemoryError:
            pass  # outside of this block nothing holds the tensors of the attempt
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of one client's loss, also sys.exit: alone it fails by itself
            self._say_alone(described(error))
            return alone
        if self._graphs is not None:
            self._graphs.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if len(group) == 1:
            return alone
        self.limit = min(self.limit, (len(group) + 1) // 2)
        self._say(f"out of memory with {len(group)} clients in one step; from now on at most {self.limit}")
        return self._stacked(group)

    def _say_alone(self, reason: str) -> None:
        self._say(f"clients work one at a time: {reason}")

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.events.append(text)

    def _way_of(self, model: nn.Module) -> _Way:
        if id(model) not in self._ways:
            self._ways[id(model)] = self._found_way(model, self._wanted)
        return self._ways[id(model)]

    def _found_way(self, model: nn.Module, wanted: str) -> _Way:
        form = self._environment.data.form
        if wanted == "one":
            return _Way(model, "vmap", "engine.path = 'one'")
        if wanted != "vmap":
            reason = why_not_folded(model) or why_unsound(model, form, "folded")
            if reason is None:
                return _Way(model, "folded", None)
            if wanted == "folded":
                raise InputError(f"engine.path = 'folded': the model cannot be folded: {reason}; set 'vmap' or 'auto'.")
        return _Way(model, "vmap", why_not_stacked(model) or why_unsound(model, form, "vmap"))


class _Way(NamedTuple):
    """How a model is stacked, or why it is not. `model` is kept, so that no other gets its id."""

    model: nn.Module
    path: Path
    reason: str | None


def parted(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Yield successive parts of a list, each of this size, the last one perhaps smaller."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def blocks_of_step(clients: int) -> int:
    """Return how many blocks of merged replies a group has: whole ones, for at least this number of clients."""
    return -(-clients // BLOCK)


def note_step(environment: Environment, clients: int, path: WantedPath) -> None:
    """Write what was chosen for a step into the run's config: how many clients, and their path."""
    table = environment.config.engine
    chosen = {"name": table.name, **table.options, "clients_per_step": clients}
    if path != "auto":
        chosen["path"] = path
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
        bytes_of_client(environment.model(number), environment.config.train, environment.data.form)
        for number in range(len(environment.config.model.architectures))
    )
    free = _SHARE * share * free_bytes(environment.device) - environment.preprocess.kept_bytes()
    room = max(1, min(most, int(free / largest)))
    return -(-most // -(-most // room))


def _why_alone(work: Work) -> str | None:
    """Return why this work is done alone, apart from its model's layers, or None."""
    if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(work.preprocess.device.type):
        return "inference mode or autocast is on"  # these hold for all clients of the process that wait meanwhile
    return kind_of(work).why_alone(work)

"""Chooses how the clients of a step are stacked on a GPU: by measuring, once before round 1."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from fedkd.core.environment import Environment
from fedkd.data.samples import Samples
from fedkd.errors import InputError
from fedkd.learning.stacked_models import NotStacked, Path, why_not_folded, why_not_stacked, why_unsound
from fedkd.learning.stacked_training import train_stacked
from fedkd.learning.training import LocalTraining, half_of, train_alone
from fedkd.models.build import fill

Way = Literal["vmap", "folded", "one"]  # one: one client at a time
WantedPath = Literal["auto", "vmap", "folded", "one"] | list[Way]
_STEPS = 8  # of a training that is measured
_PATHS: tuple[Path, ...] = ("folded", "vmap")
Seconds = Callable[[Callable[[], Any]], float]


def paths_of_step(
    environment: Environment, wanted: WantedPath, clients: int, note: Callable[[str], None]
) -> WantedPath:
    """Return the path of each architecture, the fastest one; `wanted` itself if it is not `auto`, and on a CPU.

    `note` gets a line with the times. Raises InputError for a list that has not one path for each architecture.
    """
    names = [architecture.name for architecture in environment.config.model.architectures]
    if isinstance(wanted, list) and len(wanted) != len(names):
        raise InputError(f"engine.path = {wanted}: give one path for each of the {len(names)} models.")
    if wanted != "auto" or clients < 2 or environment.device.type == "cpu":
        return wanted
    together = min(clients, environment.config.cohort or environment.data.clients)
    chosen: list[Way] = []
    for number, name in enumerate(names):
        times = times_of(environment, number, max(2, together // len(names)), seconds_of)
        # of a model that cannot be stacked, the engine says why
        chosen.append(min(times, key=lambda way: times[way]) if len(times) > 1 else "vmap")
        said = ", ".join(f"{way} {1000 * seconds / _STEPS:.3g}" for way, seconds in times.items())
        note(f"engine.path = {chosen[-1]!r} for {name}: milliseconds of a step of all clients: {said}")
    return chosen


def times_of(environment: Environment, number: int, clients: int, seconds: Seconds) -> dict[Way, float]:
    """Return the seconds of a short training of this number of clients of an architecture, for each sound path.

    On random samples, with cross-entropy and the optimiser of the config. No stream of the run draws for it.
    """
    model, form = environment.model(number), environment.data.form
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = [_training(environment, model, client) for client in range(clients)]
    found: dict[Way, float] = {}
    for path in _PATHS:
        reason = why_not_folded(model) if path == "folded" else None
        if reason or why_not_stacked(model) or why_unsound(model, form, path):
            continue
        try:
            found[path] = seconds(lambda path=path: train_stacked(made, [state] * clients, path))  # type: ignore[misc]
        except (NotStacked, torch.OutOfMemoryError):
            continue
    if found:
        found["one"] = clients * seconds(lambda: train_alone(made[0]))
    fill(model, state)
    return found


def _training(environment: Environment, model: nn.Module, client: int) -> LocalTraining:
    settings, draw = environment.config.train, np.random.default_rng(client)
    count = _STEPS * settings.batch_size
    labels = draw.integers(0, len(environment.data.classes), count)
    inputs = environment.data.form.drawn(count, torch.Generator().manual_seed(client)).numpy()
    return LocalTraining(
        model,
        Samples(inputs, labels, encoded=True),
        torch.from_numpy(labels),
        epochs=1,
        batch_size=settings.batch_size,
        optimizer=settings.optimizer,
        preprocess=environment.preprocess,
        order=torch.Generator().manual_seed(client),
        clip=settings.clip,
        half=half_of(settings),
    )


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the seconds of work on a GPU, the better of two, after it was done once."""
    work()
    taken = []
    for _ in range(2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken)

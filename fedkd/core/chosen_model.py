"""The model of a node, or of the server, after a round: the one that the run measures."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from flwr.app import RecordDict
from torch import nn

from ..config import Architecture, NamedTable
from ..errors import InputError
from ..messages.arrays import Tensors, tensors_of
from ..messages.carrier import Carrier
from ..messages.payload import Payload
from .client import MODEL, STATISTICS
from .round import Round
from .setup import Setup


class Chosen(NamedTuple):
    """A model: its module, in eval mode, and the name and options of its architecture."""

    module: nn.Module
    architecture: NamedTable


def chosen_model(setup: Setup, state_of: Callable[[int], RecordDict | None], node: int | None) -> Chosen:
    """Return the model of a node, or without `node` the server's. The strategy has the state of after the round.

    It is the model whose metrics are `personal/...` of the node, or `global/...`. `state_of`: the state that a node had
    after the round. Raises InputError for a node that is not there, and if the server has no model, or several.
    """
    strategy, environment = setup.strategy, setup.environment
    if node is None:
        return _made(setup, *_of_server(setup))
    clients = environment.data.clients
    if not hasattr(node, "__index__") or not 0 <= (node := operator.index(node)) < clients:
        raise InputError(f"node {node!r}: the federation has the nodes 0 to {clients - 1}.")
    quiet = cast(Carrier, None)  # an evaluation's payload asks nobody
    found = strategy.evaluation(Round(environment, quiet, 1, range(clients), [node], [node], ()))
    sent = ((found.get(node) if isinstance(found, dict) else found) or Payload()).weights
    architecture = environment.architecture_of(node)
    if sent and not strategy.classifies:
        return _made(setup, 0, sent)
    state = state_of(node)
    kept = None if state is None else state.array_records.get(MODEL)
    personal = environment.initial_weights(architecture, node) if kept is None else tensors_of(kept)
    own = None if state is None else state.array_records.get(STATISTICS)
    statistics = {} if own is None else tensors_of(own)
    return _made(setup, architecture, {**personal, **sent, **statistics})  # a method may send a part of the model


def _of_server(setup: Setup) -> tuple[Architecture, Tensors]:
    strategy, name = setup.strategy, setup.environment.config.strategy.name
    if not strategy.classifies and strategy.weights:
        return 0, strategy.weights
    models = strategy.global_models()
    if not models:
        raise InputError(f"{name} has no global model; name a node, whose personal model is taken.")
    if len(models) > 1:
        raise InputError(
            f"{name} has {len(models)} global models, one for each architecture; name a node: the model of its "
            "architecture is taken."
        )
    return models[0]


def _made(setup: Setup, architecture: Architecture, weights: Tensors) -> Chosen:
    named = (
        setup.environment.config.model.architectures[architecture] if isinstance(architecture, int) else architecture
    )
    module: Any = setup.strategy.module(setup.environment, architecture, weights)
    return Chosen(module, named)

"""The kinds of work that clients can do in one step: what they must have in common for it, and how it is done."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fedkd.distillation.stacked_matching import Matching, match_stacked, matching_key, why_matched_alone
from fedkd.learning.contrast import ContrastiveTraining
from fedkd.learning.evaluation import Prediction
from fedkd.learning.stacked_comparison import compare_stacked, comparison_key, why_compared_alone
from fedkd.learning.stacked_contrast import contrast_key, contrast_stacked, why_contrasted_alone
from fedkd.learning.stacked_graphs import StepGraphs
from fedkd.learning.stacked_models import Path, why_not_stacked
from fedkd.learning.stacked_prediction import predict_stacked, prediction_key
from fedkd.learning.stacked_training import key_of, train_stacked, why_alone
from fedkd.learning.training import BatchLoss, LocalTraining
from fedkd.learning.work import Work

Graphs = StepGraphs | None  # of steps that a GPU records
State = Mapping[str, Tensor]  # a model's parameters and buffers
States = Sequence[State]


class Outcome(NamedTuple):
    """What a client gets: the result of its work, and its model's state and mode after it."""

    result: Any
    state: State
    training: bool


class Kind(NamedTuple):
    """How work of one kind is done in one step.

    `why_alone(work)`: why a client can only do it alone, or None. `key_of(work)`: what clients must have in common.
    `together(works, states, path, graphs)`: does it; `states`: those that the models begin with. After an error nothing
    is changed. `by_vmap`: it has only this path, whatever the model's is. `least`: the clients for which it pays.
    """

    why_alone: Callable[[Any], str | None]
    key_of: Callable[[Any], Hashable]
    together: Callable[[Sequence[Any], States, Path, Graphs], list[Outcome]]
    by_vmap: bool = False
    least: int = 2


def kind_of(work: Work) -> Kind:
    """Return the kind of a work. Raises KeyError for one that no engine knows."""
    if isinstance(work, LocalTraining) and isinstance(work.loss, BatchLoss):
        return _COMPARISON
    return _KINDS[type(work)]


def _train(works: Sequence[LocalTraining], states: States, path: Path, graphs: Graphs) -> list[Outcome]:
    return [Outcome(one.loss, one.weights, True) for one in train_stacked(works, states, path, graphs)]


def _compare(works: Sequence[LocalTraining], states: States, path: Path, graphs: Graphs) -> list[Outcome]:
    return [Outcome(one.loss, one.weights, True) for one in compare_stacked(works, states)]


def _predict(works: Sequence[Prediction], states: States, path: Path, graphs: Graphs) -> list[Outcome]:
    found = predict_stacked(works, states, path)
    return [Outcome(outputs, state, False) for outputs, state in zip(found, states, strict=True)]


def _why_predicted_alone(work: Prediction) -> str | None:
    return why_not_stacked(work.model) or (None if len(work.data.labels) else "it has no images")


def _contrast(works: Sequence[ContrastiveTraining], states: States, path: Path, graphs: Graphs) -> list[Outcome]:
    return [Outcome(one.loss, one.weights, True) for one in contrast_stacked(works, states)]


def _match(works: Sequence[Matching], states: States, path: Path, graphs: Graphs) -> list[Outcome]:
    found = match_stacked(works, states, path)
    return [Outcome(losses, state, True) for losses, state in zip(found, states, strict=True)]


_COMPARISON = Kind(why_compared_alone, comparison_key, _compare, by_vmap=True)
_KINDS: dict[type, Kind] = {
    LocalTraining: Kind(why_alone, key_of, _train),
    Prediction: Kind(_why_predicted_alone, prediction_key, _predict),
    ContrastiveTraining: Kind(why_contrasted_alone, contrast_key, _contrast, by_vmap=True),
    Matching: Kind(why_matched_alone, matching_key, _match, least=1),  # all classes of a client in one step
}

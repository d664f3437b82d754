"""The server half as it is inherited: its state, its models, and what it measures of them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedkd import Environment, Payload, Round, Strategy


class Plain(Strategy):
    def run_round(self, federation: Round) -> None: ...


def federation_of(labels: int, scores: dict[float, dict[str, float]]) -> Round:
    test = SimpleNamespace(labels=np.zeros(labels))
    score = lambda architecture, weights, images: scores[architecture + weights]  # noqa: E731
    data = SimpleNamespace(test=test)
    environment = SimpleNamespace(data=data, score=score, on_global_test=labels > 0)
    return cast(Round, SimpleNamespace(environment=environment))


def test_the_common_state_is_no_option_and_is_not_shown() -> None:
    about = {field.name: (field.init, field.repr) for field in dataclasses.fields(Strategy)}
    assert about == {"weights": (False, False), "prepared": (False, False)}
    flags = ("equal_models", "global_model", "classifies", "listed_models", "pooled")
    assert [getattr(Strategy, flag) for flag in flags] == [False, False, True, False, False]


def test_without_a_model_nothing_is_sent_or_measured() -> None:
    method, federation = Plain(), federation_of(5, {})
    assert method.evaluation(federation) == Payload()
    assert method.global_models() == []
    assert method.measure(federation) == {}
    assert method.layers() == [method]
    assert method.most_images(7, cast(Environment, None)) == 7


def test_the_global_model_is_of_the_first_architecture() -> None:
    method = Plain()
    method.weights = cast(Any, {"w": 1})
    assert method.global_models() == [(0, {"w": 1})]
    assert method.evaluation(federation_of(5, {})).weights == {"w": 1}


class Several(Plain):
    models: tuple[tuple[int, float], ...] = ()

    def global_models(self) -> Any:
        return list(self.models)

    def stages(self) -> Any:
        return {"aggregated": (1, 0.5)}


@pytest.mark.parametrize(
    ("models", "metrics"),
    [
        ([(0, 0.25)], {"global/accuracy": 0.25}),
        (
            [(0, 0.25), (1, 0.25)],
            {"global/accuracy": 0.625, "global_0/accuracy": 0.25, "global_1/accuracy": 1.0},
        ),
        (
            [(0, 0.25), (1, 0.25), (0, 0.125)],
            {"global/accuracy": 0.5, "global_0/accuracy": 0.25, "global_1/accuracy": 1.0, "global_2/accuracy": 0.25},
        ),
        ([], {}),
    ],
)
def test_metrics_are_of_each_model_and_their_means(models: list[tuple[int, float]], metrics: dict[str, float]) -> None:
    accuracy = {0.25: 0.25, 1.25: 1.0, 0.125: 0.25, 1.5: 0.75}  # by architecture + weights
    scores = {key: {"accuracy": value} for key, value in accuracy.items()}
    method = Several()
    method.models = tuple(models)
    assert method.measure(federation_of(1, scores)) == {**metrics, "aggregated/accuracy": 0.75}
    assert method.measure(federation_of(0, scores)) == {}

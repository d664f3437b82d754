"""Metrics: the names and the values that a node may report, at the edges of each range."""

from __future__ import annotations

import math

import pytest

from fedkd.messages.metric_names import belongs_to, checked_metric, scope_of

LARGEST = 3.4e38  # finite in float32


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("personal/accuracy", 0.0, 1.0),
        ("drift/feature_angle", 0.0, 180.0),
        ("personal/loss", 0.0, LARGEST),
        ("own/gain", -LARGEST, LARGEST),
        ("personal/accuracy_of_all", -LARGEST, LARGEST),
    ],
)
def test_a_metric_may_have_both_ends_of_its_range(name: str, low: float, high: float) -> None:
    assert [checked_metric(name, low), checked_metric(name, high)] == [low, high]
    for beyond in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf)):
        with pytest.raises(ValueError, match=f"^metric '{name}' is .*, out of range$"):
            checked_metric(name, beyond)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("accuracy", "metric 'accuracy' is not named scope/metric"),
        ("a/b/c", "metric 'a/b/c' is not named scope/metric"),
        ("A/b", "metric 'A/b' is not named scope/metric"),
        ("a" * 61 + "/b", "is not named scope/metric"),
        ("a/" + "b" * 61, "is not named scope/metric"),
        ("a" * 81, f"metric '{'a' * 77}...' is not named scope/metric"),
        ("global/loss", "metric 'global/loss' may only be reported by the server"),
        ("global_12/loss", "may only be reported by the server"),
        ("aggregated/loss", "may only be reported by the server"),
        ("latest/loss", "may only be reported by the server"),
        ("probe/accuracy", "may only be reported by the server"),
        ("knn/accuracy", "may only be reported by the server"),
        ("semi_1/accuracy", "may only be reported by the server"),
    ],
)
def test_names_that_no_node_may_report_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason}$"):
        checked_metric(name, 0.5)


def test_a_name_may_have_60_characters_on_each_side() -> None:
    assert checked_metric("a" * 60 + "/" + "b" * 60, 2) == 2.0
    assert type(checked_metric("own/gain", 2)) is float
    assert scope_of("own/gain") == "own"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(math.nan, "nan"), (-math.inf, "-inf"), ("text", "text"), (None, "None"), ("x" * 81, "x" * 77 + "...")],
)
def test_what_is_no_finite_number_is_refused(value: object, shown: str) -> None:
    with pytest.raises(ValueError, match=f"^metric 'own/gain' is {shown}$"):
        checked_metric("own/gain", value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scope", "evaluate", "fit"),
    [
        ("personal", True, False),
        ("personal_global_test", True, False),
        ("personal_classifier", True, False),
        ("drift", True, False),
        ("personal_after_fit", False, True),
        ("own", True, True),
    ],
)
def test_scopes_belong_to_the_evaluation_or_to_other_requests(scope: str, evaluate: bool, fit: bool) -> None:
    assert (belongs_to(f"{scope}/x", "evaluate"), belongs_to(f"{scope}/x", "fit")) == (evaluate, fit)

"""Names and values of metrics: `scope/metric`, and the scopes that only the server measures."""

from __future__ import annotations

import math
import re
from typing import SupportsFloat

from ..errors import on_one_line

METRIC_NAME = re.compile(r"[a-z0-9_]{1,60}/[a-z0-9_]{1,60}")
SERVER_SCOPES = re.compile(r"global(_\d+)?|aggregated|latest|probe|knn|semi_\d+")  # only the server measures them
EVALUATION_SCOPES = re.compile(
    r"personal|personal_global_test|personal_validation|personal_classifier|drift"
)  # only of `evaluate`
TRAINING_SCOPES = re.compile(r"personal_after_\w+")  # of any other request
MAIN = ("accuracy", "macro_f1", "mae")  # of each task: the metric that is shown first
_FRACTIONS = ("/accuracy", "/macro_f1")
MOST = 3.4e38  # all values are finite in float32; so are their means


def metric_range(name: str) -> tuple[float, float]:
    """Return the smallest and the largest value that a metric can have."""
    if is_fraction(name):
        return 0.0, 1.0
    if name.endswith("/r2"):
        return -math.inf, 1.0
    if name.endswith("_angle"):
        return 0.0, 180.0
    return (0.0 if name.endswith(("/loss", "/mse", "/mae")) else -math.inf), math.inf


def is_fraction(name: str) -> bool:
    """Return whether a metric is a share, 0 to 1, which is shown in percent."""
    return name.endswith(_FRACTIONS)


def as_text(name: str, value: float) -> str:
    """Return a metric's value as text: a fraction with three digits, others with six significant ones."""
    return f"{value:.3f}" if is_fraction(name) else f"{value:.6g}"


def is_main(name: str) -> bool:
    """Return whether a metric is the main one of its task."""
    return name.rpartition("/")[2] in MAIN


def checked_metric(name: str, value: SupportsFloat) -> float:
    """Return a node's metric as a float. Raises ValueError, which names the metric, for a wrong name or value."""
    if not METRIC_NAME.fullmatch(name):
        raise ValueError(f"metric {on_one_line(name, 80)!r} is not named scope/metric")
    if SERVER_SCOPES.fullmatch(scope_of(name)):
        raise ValueError(f"metric {name!r} may only be reported by the server")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"metric {name!r} is {on_one_line(str(value), 80)}") from None
    if not math.isfinite(number):
        raise ValueError(f"metric {name!r} is {number}")
    low, high = metric_range(name)
    if not max(low, -MOST) <= number <= min(high, MOST):
        raise ValueError(f"metric {name!r} is {number}, out of range")
    return number


def scope_of(metric: str) -> str:
    """Return the part of a metric's name that says whose metric it is, such as `personal`."""
    return metric.split("/")[0]


def belongs_to(metric: str, action: str) -> bool:
    """Return whether a node may report a metric in its reply to this request."""
    return (TRAINING_SCOPES if action == "evaluate" else EVALUATION_SCOPES).fullmatch(scope_of(metric)) is None

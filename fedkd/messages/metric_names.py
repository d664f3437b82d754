"""Names and values of metrics: `scope/metric`, and the scopes that only the server measures."""

from __future__ import annotations

import math
import re
from typing import SupportsFloat

from ..errors import on_one_line

METRIC_NAME = re.compile(r"[a-z0-9_]{1,60}/[a-z0-9_]{1,60}")
SERVER_SCOPES = re.compile(r"global(_\d+)?|aggregated|probe|knn|semi_\d+")  # scopes that only the server measures
MOST_METRIC = 1e30  # larger values could make means infinite


def metric_range(name: str) -> tuple[float, float]:
    """Return the smallest and the largest value that a metric can have."""
    if name.endswith("/accuracy"):
        return 0.0, 1.0
    return (0.0 if name.endswith(("/loss", "_angle")) else -math.inf), math.inf


def checked_metric(name: str, value: SupportsFloat) -> float:
    """Return a node's metric as a float. Raises ValueError, which names the metric, for a wrong name or value."""
    if not METRIC_NAME.fullmatch(name):
        raise ValueError(f"metric {on_one_line(name, 80)!r} is not named scope/metric")
    if SERVER_SCOPES.fullmatch(name.split("/")[0]):
        raise ValueError(f"metric {name!r} may only be reported by the server")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"metric {name!r} is {on_one_line(str(value), 80)}") from None
    if not math.isfinite(number):
        raise ValueError(f"metric {name!r} is {number}")
    if not (0 <= number <= 1 if name.endswith("/accuracy") else abs(number) <= MOST_METRIC):
        raise ValueError(f"metric {name!r} is {number}, out of range")
    return number

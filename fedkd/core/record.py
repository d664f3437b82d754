"""The results of a round: its metrics, bytes, failures, log and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..messages.ledger import Sizes, no_bytes


class Captioned(NamedTuple):
    """A row of images, uint8, N x channels x H x W, with one caption for each."""

    images: np.ndarray
    captions: tuple[str, ...]


@dataclass
class Record:
    """The results of a round: one line of metrics.jsonl. Round 0 is the strategy's preparation."""

    number: int
    cohort: list[int]
    metrics: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, dict[int, float]] = field(default_factory=dict)
    bytes: Sizes = field(default_factory=no_bytes)
    evaluation_bytes: Sizes = field(default_factory=no_bytes)
    failures: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Captioned] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

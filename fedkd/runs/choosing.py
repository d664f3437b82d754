"""Which round of a run is its best by a metric, and when a run has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..config import Config, StopConfig
from ..errors import InputError, some
from ..messages.metric_names import is_main, scope_of
from .metrics import lower_is_better

AUTO = "auto"
_SCOPES = ("personal_validation", "personal", "global", "probe")  # whose main metric `auto` is, the first that is there


def _main_of(measured: Iterable[str]) -> str:
    names = [name for name in measured if is_main(name)]
    ranked = [name for scope in _SCOPES for name in names if scope_of(name) == scope]
    return next(iter([*ranked, *names]), AUTO)


class BestRound:
    """The best value of a metric so far, its round, and the number of measured rounds since then.

    The metric `auto` becomes the main one of the nodes' models, or of the server's, when a round is measured first.
    """

    def __init__(self, key: str, metric: str, change: float = 0.0) -> None:
        """Begin without any round. `key`: of the config that names the metric. `change`: an improvement is more."""
        self.metric = metric
        self.value: float | None = None
        self.round = 0
        self.waited = 0
        self._key, self._change = key, change

    def note(self, line: dict[str, Any]) -> bool:
        """Take a line of metrics.jsonl; return whether its round is the best one so far.

        Raises InputError if the round was measured, but not the metric.
        """
        measured = line["metrics"]
        if self.metric == AUTO:
            self.metric = _main_of(measured)
        if self.metric not in measured:
            if measured and self.metric != AUTO and (line["round"] > 0 or "_after_" not in self.metric):
                raise InputError(
                    f"{self._key} = {self.metric!r}: this run does not measure it; it measures "
                    f"{some(sorted(measured), 20)}."
                )
            return False
        found = measured[self.metric]
        value = math.nan if found is None else found  # a value that is not finite is null in metrics.jsonl
        sign = -1.0 if lower_is_better(self.metric) else 1.0
        better = not math.isnan(value) and (self.value is None or sign * (value - self.value) > self._change)
        if better:
            self.value, self.round, self.waited = value, line["round"], 0
        else:
            self.waited += 1
        return better


class EarlyStop:
    """Whether a run has stopped improving (`[stop]`)."""

    def __init__(self, settings: StopConfig | None, lines: Iterable[dict[str, Any]]) -> None:
        """Take the settings, and the lines of the run's earlier rounds."""
        self._settings = settings
        self._best = None if settings is None else BestRound("stop.metric", settings.metric, settings.change)
        for line in lines:
            self.note(line)

    def note(self, line: dict[str, Any]) -> None:
        """Take a line of metrics.jsonl. Raises InputError for a metric that the run does not measure."""
        if self._best is not None:
            self._best.note(line)

    @property
    def reached(self) -> dict[str, Any] | None:
        """Return why the run ends now: the metric, its best round and value; None if it goes on."""
        settings, best = self._settings, self._best
        if settings is None or best is None:
            return None
        found = {"metric": settings.metric, "best_round": best.round, "best": best.value}
        if settings.target is not None and best.value is not None:
            below = lower_is_better(settings.metric)
            if best.value <= settings.target if below else best.value >= settings.target:
                return {**found, "target": settings.target}
        return found if settings.limit is not None and best.waited >= settings.limit else None


def watchers(config: Config, lines: Iterable[dict[str, Any]]) -> tuple[BestRound | None, EarlyStop]:
    """Return what watches a run's best round and its end, with the lines of its earlier rounds.

    Raises InputError for a metric that these rounds do not have.
    """
    lines = list(lines)
    wanted = config.checkpoint.best
    best = None if wanted is None else BestRound("checkpoint.best", wanted)
    for line in lines:
        if best is not None:
            best.note(line)
    return best, EarlyStop(config.stop, lines)

"""The round loop, one for all methods and engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedkd.deployment.roster import Roster

from ..config import Architecture
from ..messages.arrays import Tensors
from .record import Record

if TYPE_CHECKING:
    from .environment import Environment

MOST_LISTED = 10_000  # nodes that a line of metrics.jsonl may name
MOST_MEASURED = 100  # nodes, where the config does not say how many


@dataclass
class Server:
    """What a strategy's loop needs besides the grid: the environment, and who wants to hear of each round.

    `on_round` gets the Record of each round, `on_checkpoint` the number of a round whose state is to be kept, `on_step`
    how far long work on the server is: the round, what it is, steps done, steps in all; `on_event`, at once, what
    happens to real sites. `first_round` is 0 for a new run, and the round after the checkpoint for one that continues.
    `roster`: the real sites that the federation has met; its own for each run unless given.
    """

    environment: Environment
    on_round: Callable[[Record], None] = lambda record: None
    on_checkpoint: Callable[[int], None] = lambda number: None
    on_step: Callable[[int, str, int, int], None] = lambda number, what, done, total: None
    on_event: Callable[[str], None] = lambda text: None
    first_round: int = 0
    roster: Roster = field(default_factory=Roster)


def global_metrics(models: list[tuple[Architecture, Tensors]], environment: Environment) -> dict[str, float]:
    """Return the metrics of the server's models on the global test set; of several, their means and each one's."""
    scores = [environment.score(architecture, weights, environment.data.test) for architecture, weights in models]
    found = {f"global/{name}": sum(s[name] for s in scores) / len(scores) for name in (scores[0] if scores else ())}
    if len(scores) > 1:
        found |= {f"global_{i}/{name}": value for i, score in enumerate(scores) for name, value in score.items()}
    return found

"""The round loop, one for all methods and engines."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import TooFewReplies, some
from ..messages.carrier import Carrier, SiteCarrier
from ..messages.metric_names import scope_of
from ..stopping import check
from ..streams import default_stream
from .client_app import actions
from .environment import Environment
from .record import Record
from .round import Round
from .sampling import sample_cohort, sample_measured
from .setup import Setup
from .state import State, StateWatch, restore_state, state_of
from .strategy import Strategy
from .undo import Recorder, Replay, flaw_of, offenders

MOST_LISTED = 10_000  # the largest number of nodes that a line of metrics.jsonl lists


OnStep = Callable[[int, str, int, int], None]


def run_rounds(setup: Setup, carrier: Carrier, *, on_round: Callable[[Record], None] = lambda record: None) -> None:
    """Run a strategy for all its rounds, without a run folder; `on_round` gets the Record of each. See `each_round`."""
    for record in each_round(setup, carrier):
        on_round(record)


def each_round(
    setup: Setup,
    carrier: Carrier,
    *,
    first_round: int = 0,
    on_step: OnStep = lambda number, what, done, total: None,
) -> Iterator[Record]:
    """Run a strategy for as many rounds as its config says, and yield the Record of each; round 0 is its preparation.

    first_round: 0 for a new run, the round after the checkpoint for a resumed run. on_step gets the progress of long
    work on the server: round, name of the work, finished steps, all steps. Raises RunError if a round has too few good
    replies, and InputError if a round changes something that a resumed run would not have.
    """
    strategy, environment, config = setup.strategy, setup.environment, setup.environment.config
    if strategy.global_model and strategy.weights is None:
        strategy.weights = strategy.initial_weights(environment)
    answers = actions(strategy.client_class())
    watch = StateWatch(strategy)
    server_scopes: set[str] = set()
    recorder = Recorder(carrier) if isinstance(carrier, SiteCarrier) else None
    carrier = recorder or carrier
    with _frozen():
        for number in range(first_round, config.rounds + 1):
            check()
            begin = time.perf_counter()
            nodes = carrier.nodes()
            strategy.prepared = strategy.prepared - carrier.lost_states()
            cohort = sample_cohort(nodes, config, number) if number else _first_cohort(strategy, nodes)
            server_scopes |= strategy.stages().keys()
            federation = Round(
                environment,
                carrier,
                number,
                nodes,
                cohort,
                sample_measured(nodes, config, number),
                answers,
                lambda images: strategy.most_images(images, environment),
                server_scopes,
                strategy.client_class().reports,
                on_step,
            )
            before = None if recorder is None else state_of(strategy)
            _run(strategy, federation)
            undone = (
                None if recorder is None or before is None else _undo_if_flawed(strategy, federation, recorder, before)
            )
            trained = time.perf_counter()
            record = federation.record
            if federation.due:
                wait_for_nodes = federation.measure(strategy.evaluation(federation))
                record.metrics.update(strategy.measure(federation))
                server_scopes |= {scope_of(metric) for metric in record.metrics}
                wait_for_nodes()
            record.events = carrier.events() + ([undone] if undone else [])
            _drop_metrics_of_the_server(record, server_scopes)
            for metric, values in record.nodes.items():
                record.metrics[metric] = _mean(metric, values, environment)
            watch.check(number)
            record.seconds = {"round": trained - begin, "evaluation": time.perf_counter() - trained}
            yield record


@contextmanager
def _frozen() -> Iterator[None]:
    """Let Python's search for garbage leave out what exists before the first round: it costs 0.1 ms per client."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run(strategy: Strategy, federation: Round) -> None:
    with default_stream(federation.stream("default")):
        if _prepares_nodes(strategy):
            _prepare_missing(strategy, federation)
        (strategy.run_round if federation.number else strategy.prepare)(federation)
        federation.close()


def _undo_if_flawed(strategy: Strategy, federation: Round, recorder: Recorder, before: State) -> dict[str, Any] | None:
    """Undo a round whose result is not usable, record the nodes that spoiled it, and return the event; else None."""
    after = state_of(strategy)
    flaw = flaw_of(strategy, after.tensors, federation.environment)
    if flaw is None:
        return None

    def is_sound(replay: Replay) -> bool:
        restore_state(strategy, before)
        _run(strategy, federation.again(replay))
        return flaw_of(strategy, state_of(strategy).tensors, federation.environment) is None

    found = offenders(recorder, is_sound)
    restore_state(strategy, before)
    recorder.undo()
    for node in found:
        reason = f"the round is undone: with this node's reply {flaw}, without it not"
        federation.record.failures.append({"node": node, "action": "merge", "reason": reason})
    whose = (
        f"spoiled by {some([f'node {node}' for node in found])}"
        if found
        else "no node was found without which it is sound"
    )
    return {"event": f"the round is undone: {flaw}; {whose}"}


def _mean(metric: str, values: Mapping[int, float], environment: Environment) -> float:
    """Return the mean over nodes; with evaluate.mean_over = "samples", of `personal...`, over all their own samples."""
    nodes, scope = sorted(values), scope_of(metric)
    of_samples = scope.startswith("personal") and scope != "personal_global_test"
    if environment.config.evaluate.mean_over == "nodes" or not of_samples:
        return sum(values[node] for node in nodes) / len(nodes)
    data = environment.data
    held = data.validation_parts if scope == "personal_validation" else None
    parts = data.test_parts if held is None else held
    sizes = [len(parts[node]) for node in nodes]
    return sum(size * values[node] for node, size in zip(nodes, sizes, strict=True)) / sum(sizes)


def _drop_metrics_of_the_server(record: Record, server_scopes: set[str]) -> None:
    """Drop what nodes have reported before the server has first measured this scope; the failures name them."""
    for metric in [metric for metric in record.nodes if scope_of(metric) in server_scopes]:
        for node in sorted(record.nodes.pop(metric)):
            reason = f"metric {metric!r} may only be reported by the server"
            record.failures.append({"node": node, "action": "report", "reason": reason})


def _first_cohort(strategy: Strategy, nodes: Sequence[int]) -> list[int]:
    """Return the cohort of round 0: all nodes, or none if there are very many and the method prepares nothing."""
    prepares = type(strategy).prepare is not Strategy.prepare or _prepares_nodes(strategy)
    return list(nodes) if prepares or len(nodes) <= MOST_LISTED else []


def _prepares_nodes(strategy: Strategy) -> bool:
    return any(type(layer).prepare_nodes is not Strategy.prepare_nodes for layer in strategy.layers())


def _prepare_missing(strategy: Strategy, federation: Round) -> None:
    """Prepare the nodes of the cohort that have not finished it; after round 0, those that fail leave the cohort.

    Raises TooFewReplies if fewer than `min_replies` nodes are left, or in round 0, if that few replies are good.
    """
    missing = [node for node in federation.cohort if node not in strategy.prepared]
    if not missing:
        return
    first, failures = federation.number == 0, federation.record.failures
    before, finished = len(failures), set(missing)
    part = federation if first else federation.among(missing)
    try:
        for layer in strategy.layers():
            layer.prepare_nodes(part)
        part.close()
    except TooFewReplies:
        if first:
            raise
        finished = set()  # the rest of their requests was not sent
    strategy.prepared = strategy.prepared | (finished - {failure["node"] for failure in failures[before:]})
    if first:
        return
    needed = min(federation.config.min_replies, len(federation.cohort))
    federation.cohort = [node for node in federation.cohort if node in strategy.prepared]
    if len(federation.cohort) < needed:
        reasons = "; ".join(f"node {f['node']}, {f['action']!r}: {f['reason']}" for f in failures[before : before + 3])
        raise TooFewReplies(
            f"Round {federation.number}: {len(federation.cohort)} nodes of the cohort are prepared, min_replies is "
            f"{needed}. {reasons}"
        )

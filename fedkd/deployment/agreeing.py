"""How the server lets sites agree on a codec before round 1: it asks for statistics, merges them, and keeps the result.

No site gets another's statistics, only what follows from all of them together. The agreed file is in the run folder,
its hash in the roster, so that a resumed run goes on with the same codec and asks nobody again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message, RecordDict

from ..core.setup import Setup
from ..data.agreement import MOST_BYTES, agreement_of, reason_in
from ..data.moments import Moments
from ..data.spec import DataSpec
from ..data.statistics import (
    LARGEST,
    MIN_ROWS,
    Plan,
    Statistics,
    agreed_codec,
    plan_of,
    refuse_odd_statistics,
    values_of_one,
)
from ..errors import InputError, PayloadError, TooFewReplies, some
from ..files import read, write
from ..messages.arrival import arrive
from ..messages.payload import ArraySpec, Expected, Payload
from .roster import ROSTER, Roster
from .site_codec import AGREED, STATISTICS, agreed_file
from .sites import Sites

_MOST_COUNTED = 2.0**53
_MOST_SQUARES = LARGEST**2 * _MOST_COUNTED


def agree(
    setup: Setup, sites: Sites, roster: Roster, folder: Path, on_event: Callable[[str], None] = lambda text: None
) -> None:
    """Wait for the sites, ask them for statistics, and encode samples by what follows from them.

    A site whose reply is late, missing or wrong is named in the run's events, and the others agree without it. Raises
    TooFewReplies if fewer than `min_replies` replies are good, and InputError if the strategy or a model does not serve
    what the codec makes, or a column has no value at any site.
    """
    environment = setup.environment
    config, data = environment.config, environment.data
    spec, classes = data.spec, data.node_classes
    plan = plan_of(config.data, spec, classes)
    limits = config.limits._replace(value=_MOST_SQUARES)
    messages = [Message(RecordDict(), node, STATISTICS, group_id="0") for node in sites.nodes()]
    found: dict[str, Statistics] = {}
    failures: list[str] = []
    for message, reply in zip(messages, sites.exchange(messages, config.timeout), strict=True):
        node = message.metadata.dst_node_id
        arrival = arrive(reply, _expected(plan), limits)
        sites.settle(node, accepted=False)  # no state has changed by it
        failure = arrival.failure
        if arrival.payload is not None:
            try:
                own = _checked(arrival.payload, plan, spec, sites.images_of(node) or 0)
                found[sites.name_of(node)] = own
                if plan.columns + plan.targets and not own.moments.counts.any():
                    sites.note(node, f"has no statistics: fewer than {MIN_ROWS} training samples with a value")
            except PayloadError as error:
                failure = f"bad reply: {error}"
        if failure is not None:
            failures.append(f"{sites.name_of(node)}: {failure}")
            sites.note(node, f"its statistics do not count: {failure}")
    if len(found) < config.min_replies:
        raise TooFewReplies(
            f"Statistics before round 1: {len(found)} good replies, min_replies is {config.min_replies}. "
            f"{some(failures, 3)}"
        )
    environment.use_codec(agreed_codec(config.data, spec, classes, found))
    setup.check()
    write(folder / AGREED, agreed_file(environment.data))
    roster.codec = environment.data.codec.hash
    roster.write()
    on_event(f"codec {roster.codec} from the statistics of {len(found)} of {len(messages)} sites: {folder / AGREED}")


def _expected(plan: Plan) -> Expected:
    columns = (plan.columns + plan.targets,)
    ranges = {"count": (0.0, _MOST_COUNTED), "mean": (-LARGEST, LARGEST), "squares": (0.0, _MOST_SQUARES)}
    numbers = {name: ArraySpec(columns, torch.float64, between) for name, between in ranges.items()}
    bits = {"known": ArraySpec((plan.categories,), torch.bool), "missing": ArraySpec((plan.indicators,), torch.bool)}
    return Expected(statistics={name: one for name, one in (numbers | bits).items() if one.shape[0]})


def _checked(payload: Payload, plan: Plan, spec: DataSpec, samples: int) -> Statistics:
    """Return a site's statistics. `samples`: its training samples. Raises PayloadError for what they cannot be."""
    arrays = {name: tensor.numpy() for name, tensor in payload.statistics.items()}
    numbers = (arrays.get(name, np.zeros(0)) for name in ("count", "mean", "squares"))
    bits = (arrays.get(name, np.zeros(0, bool)) for name in ("known", "missing"))
    found = Statistics(Moments(*numbers), *bits)
    try:
        refuse_odd_statistics(found, plan, samples, values_of_one(spec))
    except ValueError as error:
        raise PayloadError(str(error)) from error
    return found


def recall(setup: Setup, roster: Roster, folder: Path) -> None:
    """Encode samples by what the sites of a run have agreed on, if they have; for a resumed run.

    Raises InputError if the file in the run folder is missing, damaged or another one.
    """
    if not roster.codec:
        return
    path, environment = folder / AGREED, setup.environment
    try:
        found = agreement_of(read(path, MOST_BYTES, folder))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {reason_in(error)}. The sites have agreed on it; restore it."
        ) from error
    if found.codec.hash != roster.codec:
        raise InputError(f"{path} is not what the sites have agreed on, by {folder / ROSTER}; restore it.")
    data = environment.data
    if (found.codec.spec, found.classes) != (data.spec, data.node_classes):
        raise InputError(f"{path} describes other samples, or has other classes, than data.sites.spec.")
    environment.use_codec(found.codec)
    setup.check()

"""A round with real sites whose result is not usable: it is undone, and the sites that spoiled it are found and named.

Each reply has passed the door by itself. Together, or with what a method computes from them, they may still give values
that are not finite, or a model whose output is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from ..data.samples import Samples
from ..errors import PayloadError, RunError
from ..learning.evaluation import predict
from ..messages.arrays import Tensors, are_within, is_finite, tensors_of
from ..messages.carrier import Carrier, SiteCarrier
from ..messages.flower import error_reply
from ..messages.ledger import all_bytes
from ..models.build import fill
from ..streams import numpy_stream, torch_stream
from .environment import Environment
from .strategy import Strategy

_MOST_KEPT = 2 * 2**30  # bytes of replies of a round that are kept for the search
_MOST_TRIALS = 100
_MOST_OUTPUT = 1e6  # of a model: training that starts beyond it diverges
_PROBE = 8  # images on which a model's output is looked at


def flaw_of(strategy: Strategy, state: Tensors, environment: Environment) -> str | None:
    """Return what is wrong with the server's state after a round, or None.

    `state`: its arrays by name. Looked at are all values, and the output of the global models on a few images.
    """
    for name, tensor in state.items():
        if not is_finite(tensor):
            return f"{name} is not finite"
    if not strategy.classifies:
        return None
    for architecture, weights in strategy.global_models():
        model = environment.model(architecture)
        fill(model, weights)
        if not are_within(predict(model, _probe(environment), environment.preprocess), _MOST_OUTPUT):
            return f"the output of the global model is not finite, or beyond {_MOST_OUTPUT:g}"
    return None


def _probe(environment: Environment) -> Samples:
    data = environment.data
    if len(data.test.labels):
        return data.test.take(np.arange(min(_PROBE, len(data.test.labels))))
    if data.spec.kind != "image":
        drawn = data.form.drawn(_PROBE, torch_stream(environment.config.seed, 0, "server", "probe"))
        return Samples(drawn.numpy(), np.zeros(_PROBE, np.int64), encoded=True)
    channels, height, width = data.image_shape
    draw = numpy_stream(environment.config.seed, 0, "server", "probe")
    images = draw.integers(0, 256, (_PROBE, channels, height, width), dtype=np.uint8)
    return Samples(images, np.zeros(_PROBE, np.int64))


class Recorder(SiteCarrier):
    """A carrier that keeps the replies of the current round, so that the round can be computed again without a node."""

    def __init__(self, carrier: SiteCarrier) -> None:
        self.carrier = carrier
        self.exchanges: list[dict[int, RecordDict]] | None = []  # None: they are too large to be kept
        self._bytes = 0

    def nodes(self) -> Sequence[int]:
        """Return the nodes; a new round begins."""
        self.exchanges, self._bytes = [], 0
        return self.carrier.nodes()

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Carry the messages, and keep the replies."""
        kept: dict[int, RecordDict] = {}
        if self.exchanges is not None:
            self.exchanges.append(kept)
        for reply in self.carrier.exchange(messages, timeout):
            if self.exchanges is not None and not reply.has_error():
                kept[reply.metadata.src_node_id] = RecordDict(dict(reply.content))
                self._bytes += all_bytes(reply.content)
                if self._bytes > _MOST_KEPT:
                    self.exchanges = None
            yield reply

    def settle(self, node: int, accepted: bool) -> None:
        """Decide on the reply to a node's last request."""
        self.carrier.settle(node, accepted)

    def undo(self) -> None:
        """Go back to the states of nodes that counted before this round."""
        self.carrier.undo()

    def states(self) -> Any:
        """Return the current states of nodes."""
        return self.carrier.states()

    def lost_states(self) -> set[int]:
        """Return the nodes that have lost their state."""
        return self.carrier.lost_states()

    def images_of(self, node: int) -> int | None:
        """Return the number of images that a node reported."""
        return self.carrier.images_of(node)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of nodes."""
        return self.carrier.events()


class Replay(Carrier):
    """Carries nothing: the replies are those of a round that is over, without those of some nodes."""

    def __init__(self, recorder: Recorder, without: set[int]) -> None:
        assert recorder.exchanges is not None
        self._carrier = recorder.carrier
        self._exchanges = iter(recorder.exchanges)
        self._without = without

    def nodes(self) -> Sequence[int]:
        """Return no nodes; a replayed round has its cohort."""
        return ()

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Yield the kept replies, in the messages' order."""
        kept = next(self._exchanges, {})
        for message in messages:
            node = message.metadata.dst_node_id
            if node in kept and node not in self._without:
                yield Message(RecordDict(dict(kept[node])), reply_to=message)
            else:
                yield error_reply(message, "left out")

    def settle(self, node: int, accepted: bool) -> None:
        """Do nothing: the nodes are not asked."""

    def images_of(self, node: int) -> int | None:
        """Return the number of images that a node reported."""
        return self._carrier.images_of(node)


def offenders(recorder: Recorder, is_sound: Callable[[Replay], bool]) -> list[int]:
    """Return the nodes without whose replies the round's result is sound; none if they are not found.

    `is_sound` computes the round again. Each node is left out alone, those with the largest values first; then the
    first two, three, ... of them together.
    """
    if recorder.exchanges is None:
        return []
    largest: dict[int, float] = {}
    for exchange in recorder.exchanges:
        for node, records in exchange.items():
            largest[node] = max(largest.get(node, 0.0), _largest(records))
    order = sorted(largest, key=lambda node: (-largest[node], node))
    alone = [[node] for node in order]
    together = [part for part in accumulate(alone) if 1 < len(part) < len(order)]
    for trial in (alone + together)[:_MOST_TRIALS]:
        try:
            if is_sound(Replay(recorder, set(trial))):
                return sorted(trial)
        except RunError:  # too few replies are left, or a later request has no kept reply
            continue
    return []


def _largest(records: RecordDict) -> float:
    """Return the largest absolute value in a reply's arrays."""
    try:
        arrays = [tensors_of(record) for record in records.array_records.values()]
    except PayloadError:  # the door has refused it
        return 0.0
    return max((float(t.double().abs().max()) for part in arrays for t in part.values() if t.numel()), default=0.0)

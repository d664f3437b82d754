"""Real sites on the server's side: which sites are connected, their identity, and the messages to and from them.

A site is known by its name, and by a number in the federation, which does not change: strategies, random streams and
run folders use numbers, as in a simulation. Only this file uses Flower's own ids.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..config import Limits
from ..core.setup import Setup
from ..errors import PayloadError, RunError, described, on_one_line, some
from ..messages.arrays import serialised
from ..messages.carrier import SiteCarrier
from ..messages.flower import (
    activations,
    at_most,
    error_reply,
    give_ids,
    has_stable_ids,
    is_gone,
    registered_names,
    renumber,
)
from ..messages.ledger import all_bytes, count_bytes
from ..messages.payload import MOST_IMAGES, NODE, ROUND, SITE
from .introduction import (
    DAMAGED,
    JOIN,
    LOST,
    REFUSE,
    Introduction,
    differences,
    introduction_of,
    is_described,
    other_series,
)
from .patience import FIRST_NOTICE, MOST_LIMIT, NEXT_NOTICE, time_limit, waiting_line
from .roster import ROSTER, Roster, looks_like
from .site_codec import CODEC, NO_CODEC, about_codec
from .site_state import request_name

_POLL_SECONDS, _MOST_POLL_SECONDS = 0.25, 2.0
_PATIENCE = 60.0  # seconds that all rounds together wait for the introductions of one SuperNode
_ALL_PATIENCE = 600.0  # seconds that they wait for the introductions of all
_MOST_MISSED = 3  # requests in a row without a reply in time; then a site gets no more
_PULL_SECONDS = 2.0  # time for a reply to be fetched before the server looks after the others meanwhile
_REMIND_SECONDS = 30.0  # time between two lines about missing sites
_ONE_MEGABYTE = 10**6
_MOST_ABOUT = 1000  # bytes of what a site reports of itself with each reply
_PATIENT_TIMEOUTS = 3  # after this number of time limits, a late reply is given up
_LEAST_TTL = 60.0
GONE = "its SuperNode has stopped during the request, or has given no sign of life for a minute"
_LEFT_OUT = "left out: it has missed the time limit too often; continue the run (resume=true) to ask it again"


@dataclass
class _Site:
    """An accepted site: its Flower id, the start time of its SuperNode, and its number of images."""

    name: str
    id: int
    activated: str
    images: int
    lost: bool = False  # whether it has lost its state, and no reply has been accepted since
    codec: str = ""  # the hash of the codec that it has


@dataclass
class _Sent:
    """A sent request. `place`: its place in the exchange that waits for the reply; None if no exchange waits for it."""

    node: int
    action: str
    group: str
    request: str
    activated: str
    begin: float
    place: int | None
    lost: bool = False  # the site has restarted since, so no reply will come

    @property
    def what(self) -> str:
        """Return the request as text."""
        return f"{self.action!r} of round {self.group}"


class _Pull(threading.Thread):
    """Fetches the reply to one message, if it has arrived. Its pieces may come slowly, and it may be anything."""

    def __init__(self, grid: Grid, id: str, size: int) -> None:
        super().__init__(daemon=True)
        self._what = grid, id, size
        self.reply: Message | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Fetch it."""
        grid, id, size = self._what
        try:
            with at_most(size, MOST_LIMIT):
                self.reply = next(iter(grid.pull_messages([id])), None)
        except Exception as error:
            self.error = error


def _action_of(message: Message) -> str:
    return message.metadata.message_type.rpartition(".")[2]


class Sites(SiteCarrier):
    """Carries messages to real sites over Flower's Grid.

    Each SuperNode introduces itself at the first contact and after each restart, and is accepted or refused. A late
    reply is dropped and reported; until it comes, its site gets no other request.
    """

    def __init__(
        self,
        grid: Grid,
        setup: Setup,
        roster: Roster | None = None,
        first_round: int = 0,
        on_event: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Carry the messages of a run over a grid.

        `roster`: the sites that have joined the federation; a new one by default. `first_round`: of the run, later than
        0 if it is resumed. `on_event` immediately gets a line about each event of a site.
        """
        self._grid = grid
        self._strategy = setup.strategy
        self._environment = setup.environment
        self._roster = Roster() if roster is None else roster
        self._first_round = first_round
        self._on_event = on_event
        self._sites: dict[int, _Site] = {}  # by number
        self._asked: dict[int, str] = {}  # by Flower id: the activation in which it was asked for its introduction
        self._joining: dict[str, tuple[int, float]] = {}  # by message: the Flower id, and the time of the message
        self._sent: dict[str, _Sent] = {}  # by message
        self._requests = 0  # the number of requests in this run
        self._replied: dict[
            int, tuple[str, bool]
        ] = {}  # until it is settled: the request, whether the site has a state
        self._accepted: dict[int, str] = {}  # of each node that has a state: the last request whose reply was accepted
        self._lost: set[int] = set()
        self._longest: dict[str, dict[int, float]] = {}  # by action and node: the longest time of a reply, in seconds
        self._waited: dict[int, float] = {}  # by Flower id: seconds that rounds have waited for its introductions
        self._missed: dict[int, int] = {}  # by node: requests in a row without a reply in time
        self._pulling: dict[str, _Pull] = {}  # by message: replies that are being fetched
        self._accepted_before: dict[int, str] = {}  # `_accepted` at the start of the round
        self._events: list[dict[str, Any]] = []
        self._welcome: dict[int, tuple[Introduction, str]] = {}  # by Flower id: they get numbers when all are connected
        self._begun = False

    def images_of(self, node: int) -> int | None:
        """Return the number of training images that a site reported at the first contact."""
        site = self._sites.get(node)
        return None if site is None else site.images

    def name_of(self, node: int) -> str:
        """Return the name of a site that has joined the federation."""
        return next(name for name, number in self._roster.numbers.items() if number == node)

    def note(self, node: int, event: str) -> None:
        """Add an event of a site."""
        self._note(self.name_of(node), node, event)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of sites since the last call."""
        events, self._events = self._events, []
        return events

    def settle(self, node: int, accepted: bool) -> None:
        """Record an accepted reply; with the next request, the site is informed of the last one and goes back to it."""
        request, has_state = self._replied.pop(node, ("", False))
        if not request or not accepted:
            return
        self._sites[node].lost = False
        self._accepted.pop(node, None)
        if has_state:
            self._accepted[node] = request

    def undo(self) -> None:
        """Go back to the requests that were the last accepted ones at the start of the round."""
        self._accepted = dict(self._accepted_before)

    def states(self) -> Iterable[tuple[int, RecordDict]]:
        """Return the last accepted request of each node that has a state; the states themselves are at the sites."""
        return [
            (node, RecordDict({ROUND: ConfigRecord({"accepted": a})})) for node, a in sorted(self._accepted.items())
        ]

    def restore(self, states: Iterable[tuple[int, RecordDict]]) -> None:
        """Continue from a checkpoint: sites go back to the requests that were the last accepted ones then."""
        self._accepted = {node: str(state.config_records[ROUND]["accepted"]) for node, state in states}

    def lost_states(self) -> set[int]:
        """Return the nodes that have lost their state since the last call."""
        lost, self._lost = self._lost, set()
        return lost

    def _note(self, name: str, node: int | None, event: str, **more: Any) -> None:
        self._events.append({"site": name, **({} if node is None else {"node": node}), "event": event, **more})
        self._on_event(f"{name}: {event}" if node is None else f"{name} (node {node}): {event}")

    # Connected sites

    def nodes(self) -> list[int]:
        """Return the numbers of all sites that have joined the federation.

        Before the first round it waits for the number of sites in the config; in a resumed run, for `min_replies`.
        Later it only waits a short time for a new site. Raises RunError if they do not come in time.
        """
        config, begin, reminded = self._environment.config, time.monotonic(), time.monotonic()
        self._accepted_before = dict(self._accepted)
        looked = begin
        wanted = self._environment.data.clients if self._first_round == 0 else config.min_replies
        while True:
            here = activations(self._grid)
            self._greet(here)
            self._hear_introductions()
            now = time.monotonic()
            waiting = self._waits_for_introductions(now - looked)
            looked = now
            known = [(site.id, site.activated) for site in self._sites.values()]
            known += [(id, activated) for id, (_, activated) in self._welcome.items()]
            present = sum(here.get(id) == activated for id, activated in known)
            if not waiting and (self._begun or present >= wanted):
                break
            missing = f"{present} of {wanted} sites are here"
            if not self._begun and config.timeout is not None and now - begin > config.timeout:
                refused = "; ".join(f"{e['site']} {e['event']}" for e in self._events if "refused" in e["event"])
                raise RunError(f"{missing} after {config.timeout:g} s. {refused}")
            if not self._begun and now - reminded > _REMIND_SECONDS:
                reminded = now
                self._on_event(f"{missing}; waiting for the others")
            time.sleep(_POLL_SECONDS)
        self._begun = True
        for id, (one, activated) in sorted(self._welcome.items(), key=lambda w: (w[1][0].partition, w[1][0].name)):
            if here.get(id) == activated:
                self._accept(one, id)
            else:
                del self._asked[id]  # it has disconnected; it is asked again when it is back
        self._welcome = {}
        return sorted(self._roster.numbers.values())

    def _waits_for_introductions(self, seconds: float) -> bool:
        """Count time that has passed for SuperNodes that were asked to introduce themselves; return whether to wait on.

        One that starts again and again, or says nothing, is left out when it has cost `_PATIENCE` seconds in all.
        """
        patient = False
        for id in {id for id, _ in self._joining.values()}:
            before = self._waited.get(id, 0.0)
            self._waited[id] = before + seconds
            if before < _PATIENCE <= self._waited[id]:
                self._note(f"SuperNode {id}", None, f"not waited for: no introduction within {_PATIENCE:g} s in all")
            patient |= self._waited[id] < _PATIENCE
        return patient and sum(self._waited.values()) < _ALL_PATIENCE

    def _greet(self, here: dict[int, str]) -> None:
        """Ask new and restarted SuperNodes for their introduction."""
        for id, activated in sorted(here.items()):
            if self._asked.get(id) == activated:
                continue
            record = ConfigRecord({"federation": self._roster.federation})
            (sent,) = self._push(Message(RecordDict({ROUND: record}), id, JOIN, group_id="0")) or (None,)
            if sent is not None:
                self._asked[id] = activated
                self._joining[sent] = (id, time.monotonic())

    def _push(self, message: Message) -> list[str]:
        message.content = serialised(message.content)
        return [sent for sent in self._grid.push_messages([message]) if sent]

    def _hear_introductions(self) -> None:
        """Accept or refuse the SuperNodes whose introduction has arrived."""
        if not self._joining:
            return
        for sent in list(self._joining):
            reply = self._pull(sent)
            if reply is None:
                continue
            id, _ = self._joining.pop(sent)
            if isinstance(reply, str) or reply.has_error():
                reason = reply if isinstance(reply, str) else reply.error.reason
                self._note(f"SuperNode {id}", None, f"refused: {on_one_line(reason or 'no reason')}")
                continue
            try:
                described = is_described(self._environment.data, self._environment.config.data.sites)
                one = introduction_of(reply.content, Limits(_ONE_MEGABYTE, {}), described, self._environment.freezes)
            except PayloadError as error:
                self._refuse(f"SuperNode {id}", id, f"bad introduction: {error}")
                continue
            if (reason := self._objection(one, id)) is not None:
                self._refuse(one.name, id, reason)
            else:
                self._welcome[id] = (one, self._asked[id])

    def _objection(self, one: Introduction, id: int) -> str | None:
        """Return the reasons why a site cannot take part, one a line, otherwise None."""
        environment = self._environment
        config, strategy, noun = environment.config, self._strategy, environment.data.spec.noun(2)
        if (reason := other_series(one.version, version("fedkd"))) is not None:
            return reason
        here = activations(self._grid)
        others = [(site.name, site.id) for site in self._sites.values()]
        others += [(other.name, its_id) for its_id, (other, _) in self._welcome.items()]
        registered = registered_names(self._grid).get(id, one.name)
        if registered != one.name:
            return f"its key was registered under the name {on_one_line(registered, 80)!r}"
        taken = next((i for name, i in others if name == one.name and i != id and i in here), None)
        if taken is not None:
            return (
                f"SuperNode {taken}, which is connected, has taken this name first; if that is not the right one, stop "
                "it, or unregister its key; names are bound to keys only where keys are registered"
            )
        names = {*self._roster.numbers, *(name for name, _ in others)}
        if alike := [name for name in names if name != one.name and looks_like(name) == looks_like(one.name)]:
            return f"its name looks like {alike[0]!r}, which is taken"
        if any(other.partition == one.partition >= 0 for i, (other, _) in self._welcome.items() if i != id):
            return f"another site has partition-id = {one.partition}"
        if (reason := self._objection_to_identity(one, id)) is not None:
            return reason
        if config.data.sites is None:
            if not 0 <= one.partition < environment.data.clients:
                return f"partition-id = {one.partition}: the config has partitions 0 to {environment.data.clients - 1}"
        elif one.partition >= 0:
            return "it has no data of its own, which data.sites asks for"
        if found := differences(one, config.data.sites, environment.data):
            return "\n".join(found)
        if not 1 <= one.images <= MOST_IMAGES:
            return f"it has {one.images} training {noun}"
        before = self._roster.reported.get(one.name, one.reported)
        if before[0] != one.images:
            return (
                f"it reported {before[0]} training {noun} at the first contact, and {one.images} now; if that is "
                "right, continue the run with accept-changes=true"
            )
        if before != one.reported:
            form = "another image shape" if one.spec is None else "other columns"
            return f"it has other classes, or {form}, than at the first contact"
        listed = [architecture.name for architecture in config.model.architectures]
        if one.model and one.model not in listed and (strategy.equal_models or strategy.listed_models):
            return f"model = {one.model!r}: {config.strategy.name} needs one of the config's: {', '.join(listed)}"
        return self._other_frozen(one, listed)

    def _other_frozen(self, one: Introduction, listed: list[str]) -> str | None:
        """Return which frozen weights of a site are not the server's, where a method needs equal models; else None."""
        if not one.frozen or not (self._strategy.equal_models or self._strategy.listed_models):
            return None
        numbers = [listed.index(one.model)] if one.model else range(len(listed))
        ours = [self._environment.frozen_hash(number) for number in numbers]
        if len(one.frozen) != len(ours):
            return f"it has frozen weights of {len(one.frozen)} models, the config has {len(ours)}"
        others = [listed[number] for number, a, b in zip(numbers, ours, one.frozen, strict=True) if a != b]
        if not others:
            return None
        return (
            f"its frozen weights of {some(others)} are not the server's, and they are never sent; give it the file of "
            "model.weights that the server has"
        )

    def _objection_to_identity(self, one: Introduction, id: int) -> str | None:
        """Return the reason if a site's key or partition contradicts its name, otherwise None."""
        roster = self._roster
        owner = next((name for name, number in roster.numbers.items() if number == one.partition), one.name)
        if owner != one.name:
            return f"another site, {owner}, has partition-id = {one.partition}"
        if one.partition >= 0 and roster.numbers.get(one.name, one.partition) != one.partition:
            return f"it has had partition-id = {roster.numbers[one.name]} before, and has {one.partition} now"
        if not has_stable_ids(self._grid):
            return None
        if roster.ids.get(one.name, id) != id:
            return (
                f"the name belongs to SuperNode {roster.ids[one.name]}, which has another key; "
                f"a line of ids in {ROSTER} says so"
            )
        before = next((name for name, known in roster.ids.items() if known == id), one.name)
        return None if before == one.name else f"it has taken part as {before} before"

    def _refuse(self, name: str, id: int, reason: str) -> None:
        lines = [on_one_line(line) for line in reason.split("\n")]
        for line in lines:
            self._note(name, None, f"refused: {line}")
        record = ConfigRecord({"reason": "\n".join(lines)})
        self._push(Message(RecordDict({ROUND: record}), id, REFUSE, group_id="0"))

    def _accept(self, one: Introduction, id: int) -> None:
        numbers = self._roster.numbers
        known = one.name in numbers
        free = next(n for n in range(len(numbers) + 1) if n not in numbers.values())
        number = numbers.setdefault(one.name, one.partition if one.partition >= 0 else free)
        self._roster.ids[one.name] = id
        self._roster.reported[one.name] = one.reported
        self._roster.write()
        self._sites[number] = _Site(one.name, id, self._asked[id], one.images, codec=one.codec)
        listed = [architecture.name for architecture in self._environment.config.model.architectures]
        self._environment.architecture_numbers.pop(number, None)
        if one.model in listed:
            self._environment.architecture_numbers[number] = listed.index(one.model)
        about = f"{one.images} training {self._environment.data.spec.noun(2)}" + (
            f", {on_one_line(one.model, 200)}" if one.model else ""
        )
        self._note(one.name, number, f"{'is back' if known else 'joined'}: {about}")
        if number in self._accepted and not any(request <= self._accepted[number] for request in one.states):
            self._has_lost(number)

    def _has_lost(self, node: int) -> None:
        """Record that a site has lost its state."""
        self._sites[node].lost = True
        self._lost.add(node)
        self._note(self._sites[node].name, node, LOST)

    # Requests and replies

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Send messages to the sites; yield a reply or an error reply for each, in their order, as soon as possible.

        `timeout`: seconds for all of them together; by default `time_limit`. The sites that are awaited are reported
        after a minute, and then rarely. A site that is still at an earlier request gets this one when it is free. One
        that misses the limit `_MOST_MISSED` times in a row gets no more requests of this run.
        """
        if not messages:
            return
        give_ids(messages)
        self._requests += 1
        limit = (
            time_limit(list(self._longest.get(_action_of(messages[0]), {}).values())) if timeout is None else timeout
        )
        late = f"no reply within {limit:g} s" + (", and the config sets no timeout" if timeout is None else "")
        begin = time.monotonic()
        next_notice = begin + FIRST_NOTICE
        waiting = list(range(len(messages)))
        done: dict[int, Message] = {}
        following = 0
        while following < len(messages):
            here = activations(self._grid)
            waiting = [place for place in waiting if not self._start(place, messages[place], here, done, limit)]
            self._collect(messages, here, done)
            open_ones = [sent for sent in self._sent.values() if sent.place is not None]
            if time.monotonic() - begin > limit:
                for place in [*waiting, *(cast(int, sent.place) for sent in open_ones)]:
                    still = self._still_at(messages[place]) if place in waiting else ""
                    done[place] = error_reply(messages[place], late + still)
                    self._count_missed(messages[place].metadata.dst_node_id)
                for sent in open_ones:
                    sent.place = None
                waiting = []
            elif time.monotonic() >= next_notice:
                next_notice = time.monotonic() + NEXT_NOTICE
                awaited = [*waiting, *(cast(int, sent.place) for sent in open_ones)]
                self._report_awaited([messages[place] for place in sorted(awaited)], time.monotonic() - begin)
            while following in done:
                yield done.pop(following)
                following += 1
            if following < len(messages):  # the longer it takes, the less a second matters
                time.sleep(min(max(_POLL_SECONDS, (time.monotonic() - begin) / 100), _MOST_POLL_SECONDS))

    def _count_missed(self, node: int) -> None:
        self._missed[node] = self._missed.get(node, 0) + 1
        if self._missed[node] == _MOST_MISSED:
            self._note(self._sites[node].name, node, _LEFT_OUT)

    def _report_awaited(self, messages: list[Message], seconds: float) -> None:
        if messages:
            names = [self._sites[message.metadata.dst_node_id].name for message in messages]
            self._on_event(waiting_line(messages[0].metadata.group_id, _action_of(messages[0]), names, seconds))

    def _start(
        self, place: int, message: Message, here: dict[int, str], done: dict[int, Message], limit: float
    ) -> bool:
        """Send a message, or let it fail immediately; return False if it must wait until its site is free."""
        node = message.metadata.dst_node_id
        site = self._sites.get(node)
        if site is None or site.id not in here:
            done[place] = error_reply(message, "is not connected")
        elif self._missed.get(node, 0) >= _MOST_MISSED:
            done[place] = error_reply(message, _LEFT_OUT)
        elif here[site.id] != site.activated:
            done[place] = error_reply(message, "its SuperNode was started anew; it joins again before the next round")
        elif self._busy(node) is not None:
            return False
        else:
            group = message.metadata.group_id
            request = request_name(int(group), self._requests)
            sent = self._push(self._addressed(message, site, request, limit))
            if sent:
                begin = time.monotonic()
                self._sent[sent[0]] = _Sent(node, _action_of(message), group, request, site.activated, begin, place)
            else:
                done[place] = error_reply(message, "the SuperLink did not take the request")
        return True

    def _addressed(self, message: Message, site: _Site, request: str, limit: float) -> Message:
        """Return a message with the site's id in Flower, and the additional records for a site."""
        node = message.metadata.dst_node_id
        record = ConfigRecord(
            {
                **message.content.config_records.get(ROUND, ConfigRecord()),
                NODE: node,
                "federation": self._roster.federation,
                "first_round": self._first_round,
                "request": request,
                "accepted": self._accepted.get(node, ""),
                "lost": site.lost,
                **about_codec(self._environment.config, self._environment.data, site.codec),
            }
        )
        content = RecordDict({**message.content, ROUND: record})
        ttl = max(_LEAST_TTL, _PATIENT_TIMEOUTS * limit)  # then its site is free again
        return Message(content, site.id, message.metadata.message_type, ttl=ttl, group_id=message.metadata.group_id)

    def _busy(self, node: int) -> _Sent | None:
        return next((sent for sent in self._sent.values() if sent.node == node and not sent.lost), None)

    def _still_at(self, message: Message) -> str:
        busy = self._busy(message.metadata.dst_node_id)
        return "" if busy is None else f"; it is still at {busy.what}"

    def _collect(self, messages: list[Message], here: dict[int, str], done: dict[int, Message]) -> None:
        """Handle received replies: those to these messages, and those to earlier requests, which are dropped."""
        for id in list(self._sent):
            reply = self._pull(id)
            if reply is None:
                continue
            sent = self._sent.pop(id)
            if isinstance(reply, Message) and not reply.has_error():
                times = self._longest.setdefault(sent.action, {})
                times[sent.node] = max(time.monotonic() - sent.begin, times.get(sent.node, 0.0))
            if sent.place is not None:
                self._missed.pop(sent.node, None)
            if sent.place is not None:
                done[sent.place] = self._arrived(messages[sent.place], sent, reply)
            elif isinstance(reply, str) or reply.has_error():
                self._note(self._sites[sent.node].name, sent.node, f"no reply to {sent.what}, given up")
            else:
                size = sum(count_bytes(reply.content).values())
                self._note(self._sites[sent.node].name, sent.node, f"late reply to {sent.what}, dropped", bytes=size)
        for sent in self._sent.values():
            if here.get(self._sites[sent.node].id) in (None, sent.activated):
                continue
            sent.lost = True
            if sent.place is not None:
                reason = "its SuperNode was started anew during the request"
                done[sent.place] = error_reply(messages[sent.place], reason)
                sent.place = None

    def _pull(self, id: str) -> Message | str | None:
        """Return the reply to a message, the reason why it cannot be read, or None if it has not arrived whole.

        Replies are pulled one at a time, by the id of the request, because a site could send wrong metadata; and beside
        the server, because a site could send slowly.
        """
        pull = self._pulling.get(id)
        if pull is None:
            limits = Limits(_ONE_MEGABYTE, {}) if id in self._joining else self._environment.config.limits
            pull = self._pulling[id] = _Pull(self._grid, id, limits.total)
            pull.start()
        pull.join(_PULL_SECONDS)
        if pull.is_alive():
            return None
        del self._pulling[id]
        if isinstance(pull.error, httpx.HTTPError):
            raise pull.error  # the SuperLink does not answer
        if pull.error is not None:  # Flower cannot read what the site has written
            return f"its reply cannot be read: {described(pull.error)}"
        return pull.reply

    def _arrived(self, message: Message, sent: _Sent, reply: Message | str) -> Message:
        """Record what a reply reports about its site, and return the reply in the form of a simulated node's reply."""
        node = sent.node
        if isinstance(reply, str):
            return error_reply(message, on_one_line(reply))
        if reply.has_error():
            if reply.error.reason == LOST:
                self._has_lost(node)
            if reply.error.reason == NO_CODEC:
                self._sites[node].codec = ""
            reason = GONE if is_gone(reply) else reply.error.reason or f"error {reply.error.code}"
            return error_reply(message, on_one_line(reason))
        about = reply.content.pop(SITE, ConfigRecord())
        if all_bytes(RecordDict({SITE: about})) > _MOST_ABOUT:
            return error_reply(message, "bad reply: its record about the site is too large")
        about = about if isinstance(about, ConfigRecord) else ConfigRecord()
        if (about.get(NODE), about.get("request")) != (node, sent.request):
            return error_reply(message, f"bad reply: it is not the reply of this site to {sent.what}")
        if about.get("damaged") is True:
            self._note(self._sites[node].name, node, DAMAGED)
        self._sites[node].codec = str(about.get(CODEC, self._sites[node].codec))
        self._replied[node] = sent.request, about.get("keeps") is True
        return renumber(reply, node)

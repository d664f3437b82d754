"""Real sites as the server sees them: who is there, who they are, and the messages between Flower's nodes and them.

A site is known by its name, and by a number in the federation that it keeps: strategies, random streams and run folders
speak of numbers, as in a simulation. Flower's own ids appear in this file only.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from .config import Limits
from .errors import RunError, on_one_line
from .federated import misfit
from .flower import activations, error_reply, give_ids, renumber
from .grid import Carrier
from .introduction import JOIN, REFUSE, Introduction, introduction_of
from .payload import MOST_IMAGES, NODE, ROUND, SITE, PayloadError, count_bytes

if TYPE_CHECKING:
    from .environment import Environment
    from .strategy import Server

_POLL_SECONDS = 0.25
_PATIENCE = 60.0  # seconds that a round waits for a newcomer to introduce itself
_REMIND_SECONDS = 30.0  # between two lines about who is missing
_ONE_MEGABYTE = 10**6


@dataclass
class Roster:
    """The sites that a federation has met, kept in a file so that a restarted server knows them again.

    `numbers`: of sites by name. `keeping`: numbers of those that said that they hold a state.
    """

    federation: str = field(default_factory=lambda: uuid.uuid4().hex)
    numbers: dict[str, int] = field(default_factory=dict)
    keeping: list[int] = field(default_factory=list)
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Return the roster in a file."""
        return cls(**json.loads(path.read_text()), path=path)

    def write(self) -> None:
        """Write it, whole or not at all."""
        if self.path is not None:
            table = {"federation": self.federation, "numbers": self.numbers, "keeping": sorted(self.keeping)}
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text(json.dumps(table, indent=2) + "\n")
            os.replace(partial, self.path)


@dataclass
class _Site:
    """An accepted site: its Flower id, when its SuperNode was started, and how many images it has."""

    name: str
    id: int
    activated: str
    images: int


@dataclass
class _Sent:
    """A request on its way. `place`: its place in the exchange that waits for it, None when nobody does any more."""

    node: int
    action: str
    group: str
    activated: str
    place: int | None
    lost: bool = False  # the site has restarted since: no reply is to be expected


class Sites(Carrier):
    """Carries messages to real sites over Flower's Grid.

    Each SuperNode introduces itself at the first contact and after each restart, and is accepted or refused. A reply
    that comes after its time is dropped and named, and its site is asked nothing else before.
    """

    def __init__(self, grid: Grid, server: Server) -> None:
        self._grid = grid
        self._environment: Environment = server.environment
        self._roster = server.roster
        self._first_round = server.first_round
        self._tell: Callable[[str], None] = server.on_event
        self._sites: dict[int, _Site] = {}  # by number
        self._asked: dict[int, str] = {}  # Flower ids that were asked to introduce themselves, in which activation
        self._joining: dict[str, tuple[int, float]] = {}  # by message: the Flower id, and since when
        self._sent: dict[str, _Sent] = {}  # by message
        self._events: list[dict[str, Any]] = []
        self._welcome: list[tuple[Introduction, int]] = []  # accepted, and to be numbered when all are here
        self._begun = False

    def images_of(self, node: int) -> int | None:
        """Return how many training images a site said it has at the first contact."""
        site = self._sites.get(node)
        return None if site is None else site.images

    def events(self) -> list[dict[str, Any]]:
        """Return what has happened to sites since this was last asked."""
        events, self._events = self._events, []
        return events

    def _note(self, name: str, node: int | None, event: str, **more: Any) -> None:
        self._events.append({"site": name, **({} if node is None else {"node": node}), "event": event, **more})
        self._tell(f"{name}: {event}" if node is None else f"{name} (node {node}): {event}")

    # Who is there

    def nodes(self) -> list[int]:
        """Return the numbers of all sites that the federation has met.

        Before the first round it waits for as many as the config speaks of, of a federation that continues for
        `min_replies`; later only for a newcomer, and not for long. Raises RunError where they do not come in time.
        """
        config, begin, reminded = self._environment.config, time.monotonic(), time.monotonic()
        wanted = self._environment.data.clients if self._first_round == 0 else config.min_replies
        while True:
            here = activations(self._grid)
            self._greet(here)
            self._hear_introductions()
            now = time.monotonic()
            waiting = any(now - since < _PATIENCE for _, since in self._joining.values())
            present = len(self._sites) + len(self._welcome)
            if not waiting and (self._begun or present >= wanted):
                break
            missing = f"{present} of {wanted} sites are here"
            if not self._begun and config.timeout is not None and now - begin > config.timeout:
                refused = "; ".join(f"{e['site']} {e['event']}" for e in self._events if "refused" in e["event"])
                raise RunError(f"{missing} after {config.timeout:g} s. {refused}")
            if not self._begun and now - reminded > _REMIND_SECONDS:
                reminded = now
                self._tell(f"{missing}; waiting for the others")
            time.sleep(_POLL_SECONDS)
        self._begun = True
        for one, id in sorted(self._welcome, key=lambda w: (w[0].partition, w[0].name)):
            self._accept(one, id)
        self._welcome = []
        return sorted(self._roster.numbers.values())

    def _greet(self, here: dict[int, str]) -> None:
        """Ask those to introduce themselves who are new, or were started anew."""
        for id, activated in sorted(here.items()):
            if self._asked.get(id) == activated:
                continue
            told = ConfigRecord({"federation": self._roster.federation})
            (sent,) = self._push(Message(RecordDict({ROUND: told}), id, JOIN, group_id="0")) or (None,)
            if sent is not None:
                self._asked[id] = activated
                self._joining[sent] = (id, time.monotonic())

    def _push(self, message: Message) -> list[str]:
        return [sent for sent in self._grid.push_messages([message]) if sent]

    def _hear_introductions(self) -> None:
        """Welcome or refuse those that have introduced themselves."""
        if not self._joining:
            return
        for reply in self._grid.pull_messages(list(self._joining)):
            id, _ = self._joining.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                self._note(f"SuperNode {id}", None, f"refused: {on_one_line(reply.error.reason or 'no reason')}")
                continue
            try:
                one = introduction_of(reply.content, Limits(_ONE_MEGABYTE, {}))
            except PayloadError as error:
                self._refuse(f"SuperNode {id}", id, f"bad introduction: {error}")
                continue
            if (reason := self._objection(one, id)) is not None:
                self._refuse(one.name, id, reason)
            else:
                self._welcome.append((one, id))

    def _objection(self, one: Introduction, id: int) -> str | None:
        """Return why a site cannot take part, if it cannot."""
        environment = self._environment
        config, strategy = environment.config, environment.strategy
        if one.version != version("fedkd"):
            return f"it runs fedkd {one.version}, the server {version('fedkd')}"
        here = activations(self._grid)
        others = [(site.name, site.id) for site in self._sites.values()]
        others += [(other.name, its_id) for other, its_id in self._welcome]
        if any(name == one.name and its_id != id and its_id in here for name, its_id in others):
            return "another connected site has the same name"
        if config.data.sites is None:
            if not 0 <= one.partition < environment.data.clients:
                return f"partition-id = {one.partition}: the config has partitions 0 to {environment.data.clients - 1}"
        elif one.partition >= 0:
            return "it has no data of its own, which data.sites asks for"
        elif (reason := misfit(config.data.sites, one.classes, one.shape)) is not None:
            return reason
        if not 1 <= one.images <= MOST_IMAGES:
            return f"it has {one.images} training images"
        listed = [architecture.name for architecture in config.model.architectures]
        if one.model and one.model not in listed and (strategy.equal_models or strategy.listed_models):
            return f"model = {one.model!r}: {config.strategy.name} needs one of the config's: {', '.join(listed)}"
        return None

    def _refuse(self, name: str, id: int, reason: str) -> None:
        self._note(name, None, f"refused: {reason}")
        told = ConfigRecord({"reason": reason})
        self._push(Message(RecordDict({ROUND: told}), id, REFUSE, group_id="0"))

    def _accept(self, one: Introduction, id: int) -> None:
        numbers = self._roster.numbers
        known = one.name in numbers
        free = next(n for n in range(len(numbers) + 1) if n not in numbers.values())
        number = numbers.setdefault(one.name, one.partition if one.partition >= 0 else free)
        self._roster.write()
        self._sites[number] = _Site(one.name, id, self._asked[id], one.images)
        listed = [architecture.name for architecture in self._environment.config.model.architectures]
        if one.model in listed:
            self._environment.architecture_numbers[number] = listed.index(one.model)
        about = f"{one.images} training images" + (f", {one.model}" if one.model else "")
        self._note(one.name, number, f"{'is back' if known else 'joined'}: {about}")

    # Requests and replies

    def exchange(self, messages: list[Message], timeout: float | None) -> Iterator[Message]:
        """Send messages to the sites; yield a reply or an error reply a message, in their order, as soon as it is due.

        `timeout`: seconds for all of them together.
        """
        give_ids(messages)
        begin = time.monotonic()
        waiting = list(range(len(messages)))
        done: dict[int, Message] = {}
        following = 0
        while following < len(messages):
            here = activations(self._grid)
            waiting = [place for place in waiting if not self._start(place, messages[place], here, done)]
            self._collect(messages, here, done)
            if timeout is not None and time.monotonic() - begin > timeout:
                for place in waiting:
                    done[place] = error_reply(messages[place], self._why_late(messages[place], timeout))
                for sent in self._sent.values():
                    if sent.place is not None:
                        done[sent.place] = error_reply(messages[sent.place], f"no reply within {timeout:g} s")
                        sent.place = None
                waiting = []
            while following in done:
                yield done.pop(following)
                following += 1
            if following < len(messages):
                time.sleep(_POLL_SECONDS)

    def _start(self, place: int, message: Message, here: dict[int, str], done: dict[int, Message]) -> bool:
        """Send a message, or fail it at once; return False where it has to wait for its site to be free."""
        node = message.metadata.dst_node_id
        site = self._sites.get(node)
        if site is None or site.id not in here:
            done[place] = error_reply(message, "is not connected")
        elif here[site.id] != site.activated:
            done[place] = error_reply(message, "its SuperNode was started anew; it joins again before the next round")
        elif self._busy(node) is not None:
            return False
        else:
            sent = self._push(self._addressed(message, site))
            if sent:
                action = message.metadata.message_type.removeprefix("train.")
                self._sent[sent[0]] = _Sent(node, action, message.metadata.group_id, site.activated, place)
            else:
                done[place] = error_reply(message, "the SuperLink did not take the request")
        return True

    def _addressed(self, message: Message, site: _Site) -> Message:
        """Return a message with the site's id in Flower, and what a real site is told besides."""
        node = message.metadata.dst_node_id
        told = ConfigRecord(
            {
                **message.content.config_records.get(ROUND, ConfigRecord()),
                NODE: node,
                "federation": self._roster.federation,
                "first_round": self._first_round,
                "keeps": node in self._roster.keeping,
            }
        )
        content = RecordDict({**message.content, ROUND: told})
        return Message(content, site.id, message.metadata.message_type, group_id=message.metadata.group_id)

    def _busy(self, node: int) -> _Sent | None:
        return next((sent for sent in self._sent.values() if sent.node == node and not sent.lost), None)

    def _why_late(self, message: Message, timeout: float) -> str:
        busy = self._busy(message.metadata.dst_node_id)
        still = "" if busy is None else f"; it is still at {busy.action!r} of round {busy.group}"
        return f"no reply within {timeout:g} s{still}"

    def _collect(self, messages: list[Message], here: dict[int, str], done: dict[int, Message]) -> None:
        """Take what has arrived: replies to these messages, and replies to earlier requests, which are dropped."""
        for reply in self._grid.pull_messages(list(self._sent)) if self._sent else ():
            sent = self._sent.pop(reply.metadata.reply_to_message_id)
            if sent.place is not None:
                done[sent.place] = self._arrived(messages[sent.place], reply)
            elif not reply.has_error():
                size = sum(count_bytes(reply.content).values())
                event = f"late reply to {sent.action!r} of round {sent.group}, dropped"
                self._note(self._sites[sent.node].name, sent.node, event, bytes=size)
        for sent in self._sent.values():
            started = here.get(self._sites[sent.node].id)
            if sent.place is not None and started not in (None, sent.activated):
                reason = "its SuperNode was started anew during the request"
                done[sent.place] = error_reply(messages[sent.place], reason)
                sent.place, sent.lost = None, True

    def _arrived(self, message: Message, reply: Message) -> Message:
        """Return a reply as from a simulated node, once what it tells of its site is noted."""
        node = message.metadata.dst_node_id
        if reply.has_error():
            return error_reply(message, on_one_line(reply.error.reason or f"error {reply.error.code}"))
        about = reply.content.pop(SITE, ConfigRecord())
        told = about if isinstance(about, ConfigRecord) else ConfigRecord()
        keeps, before = bool(told.get("keeps", False)), node in self._roster.keeping
        if told.get("lost", False):
            self._note(self._sites[node].name, node, "its state was lost; it starts afresh")
        if keeps != before:
            self._roster.keeping = sorted({*self._roster.keeping, node} - (set() if keeps else {node}))
            self._roster.write()
        return renumber(reply, node)

"""Flower's Grid over SuperNodes of this process, for tests of what the server and sites do to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedkd.config import Config
from fedkd.deployment.on_site import SiteApp
from fedkd.messages.flower import be_the_server


class Loopback(Grid):
    """Each SuperNode has an id, a node config and a context that lasts until it is restarted. Replies come in reverse.

    `held(message, node_config)`: whether the reply to a message is not there yet; asked at each pull.
    """

    def __init__(self, config: Config, sites: dict[int, dict[str, Any]], run: int = 7) -> None:
        be_the_server()
        self.app = SiteApp(lambda run_config: config)
        self.sites = sites
        self.run_id = run
        self.starts = dict.fromkeys(sites, 1)
        self.contexts = {id: self._fresh(id) for id in sites}
        self.online = set(sites)
        self.held: Callable[[Message, dict[str, Any]], bool] = lambda message, node_config: False
        self.tampered: Callable[[Message, Message], Message] = lambda message, reply: reply
        self.sent: list[Message] = []
        self.replies: dict[str, tuple[Message, Message]] = {}

    def _fresh(self, id: int) -> Context:
        return Context(self.run_id, id, self.sites[id], RecordDict(), {})

    def restart(self, id: int) -> None:
        """Start a SuperNode anew: it forgets its state and what it was at."""
        self.starts[id] += 1
        self.contexts[id] = self._fresh(id)
        self.replies = {m: (q, r) for m, (q, r) in self.replies.items() if q.metadata.dst_node_id != id}

    def get_nodes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(node_id=id, last_activated_at=str(self.starts[id])) for id in self.online]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.online)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(str(len(self.sent)))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            message.content = on_the_wire(message.content)
            reply = self.app(message, self.contexts[message.metadata.dst_node_id])
            if not reply.has_error():
                reply.content = on_the_wire(reply.content)
            self.replies[ids[-1]] = (message, self.tampered(message, reply))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        there = []
        for id in sorted(message_ids, key=int, reverse=True):
            if id in self.replies:
                message, reply = self.replies[id]
                if not self.held(message, self.sites[message.metadata.dst_node_id]):
                    there.append(reply)
                    del self.replies[id]
        return there

    def set_run(self, *args: Any) -> None: ...
    @property
    def run(self) -> Any: ...
    def create_message(self, *args: Any) -> Any: ...
    def send_and_receive(self, *args: Any, **more: Any) -> Any: ...


def on_the_wire(records: RecordDict) -> RecordDict:
    """Return records as they arrive, by Flower's own way to send them, which knows its own classes alone."""
    contents = {id: part.deflate() for id, part in get_all_nested_objects(records).items()}
    return cast(RecordDict, inflate_object_from_contents(records.object_id, contents))


class Clock:
    """Time that passes only where somebody sleeps: `monkeypatch.setattr("fedkd.deployment.sites.time", Clock())`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

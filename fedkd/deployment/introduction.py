"""The introduction of a real site: what it reports about itself at the first contact, before any request."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from flwr.app import RecordDict

from ..config import Limits
from ..errors import PayloadError, on_one_line
from ..messages.arrival import receive
from ..messages.payload import Expected, Payload
from .roster import is_the_servers

JOIN, REFUSE = "query.join", "query.refuse"  # messages: who are you; you cannot take part, for this reason
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_. -]{0,62}[A-Za-z0-9])?")  # of a site
LOST = "its state was lost; it starts afresh"  # an event, and the error of a site of which the server did not know it
DAMAGED = "its newest state is damaged; it goes on from an older one"
_MOST = float(2**53)
_MOST_PIXELS = 1e5  # of a side


@dataclass(frozen=True)
class Introduction:
    """What a site reports about itself at the first contact. It has no information on single images or class counts.

    `partition`: -1 if the site has its own data. `model`: its architecture; empty if the site uses the config's
    architecture for its number. `shape`: channels, height, width. `version`: fedkd's. `states`: the names of the
    requests of this federation after which it has kept a state.
    """

    name: str
    partition: int
    model: str
    images: int
    test_images: int
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    version: str
    states: tuple[str, ...]

    @property
    def reported(self) -> tuple[int, str]:
        """Return what a site cannot change later: its number of training images, a digest of classes and shape."""
        about = json.dumps([self.classes, self.shape]).encode()
        return self.images, hashlib.blake2b(about, digest_size=8).hexdigest()

    def to_payload(self) -> Payload:
        """Return the introduction as a payload."""
        counts = {"partition": self.partition, "images": self.images, "test_images": self.test_images}
        shape = dict(zip(("channels", "height", "width"), self.shape, strict=True))
        return Payload(
            numbers={name: float(value) for name, value in {**counts, **shape}.items()},
            strings={
                "name": self.name,
                "model": self.model,
                "version": self.version,
                "classes": json.dumps(self.classes),
                "states": " ".join(self.states),
            },
        )


def introduction_of(records: RecordDict, limits: Limits) -> Introduction:
    """Return the introduction in received records. Raises PayloadError if they are not an introduction.

    Names of classes and of the model are not checked: only compare them, and show them only through `on_one_line`.
    """
    numbers = {name: (0.0, _MOST) for name in ("images", "test_images")}
    numbers |= {name: (1.0, _MOST_PIXELS) for name in ("channels", "height", "width")}
    expected = Expected(
        numbers={**numbers, "partition": (-1.0, _MOST)}, strings=("name", "model", "version", "classes", "states")
    )
    payload = receive(records, expected, limits)
    try:
        classes = json.loads(payload.strings["classes"])
    except (ValueError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise PayloadError("string 'classes' is not a list of names")
    if len(set(classes)) < len(classes) or not all(name.isprintable() for name in classes):
        raise PayloadError("string 'classes' has a name twice, or one that cannot be printed")
    if not NAME.fullmatch(payload.strings["name"]) or is_the_servers(payload.strings["name"]):
        raise PayloadError(f"string 'name' is {on_one_line(payload.strings['name'], 80)!r}")
    if parts := [name for name, value in payload.numbers.items() if value != int(value)]:
        raise PayloadError(f"number {parts[0]!r} is not whole")
    whole = {name: int(value) for name, value in payload.numbers.items()}
    return Introduction(
        name=payload.strings["name"],
        partition=whole["partition"],
        model=payload.strings["model"],
        images=whole["images"],
        test_images=whole["test_images"],
        classes=tuple(classes),
        shape=(whole["channels"], whole["height"], whole["width"]),
        version=on_one_line(payload.strings["version"], 40),
        states=tuple(payload.strings["states"].split()),
    )

"""The introduction of a real site: what it reports about itself at the first contact, before any request."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from flwr.app import RecordDict

from ..config import Limits, RealSites
from ..data.agreement import spec_of
from ..data.federated_data import FederatedData
from ..data.site_data import misfit
from ..data.spec import DataSpec
from ..errors import PayloadError, on_one_line, some
from ..messages.arrival import receive
from ..messages.payload import Expected, Payload
from .roster import is_the_servers

JOIN, REFUSE = "query.join", "query.refuse"  # messages: who are you; you cannot take part, for this reason
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_. -]{0,62}[A-Za-z0-9])?")  # of a site
LOST = "its state was lost; it starts afresh"  # an event, and the error of a site of which the server did not know it
DAMAGED = "its newest state is damaged; it goes on from an older one"
_MOST = float(2**53)
_SIDES = ("channels", "height", "width")
_MOST_PIXELS = 1e5  # of a side
_MOST_DIFFERENCES = 20  # that are named
_SERIES = re.compile(r"([0-9]+\.[0-9]+)(?![0-9])")  # of a version: major and minor


@dataclass(frozen=True)
class Introduction:
    """What a site reports about itself at the first contact. It has no information on single samples or class counts.

    `partition`: -1 if the site has its own data. `model`: its architecture; empty if the site uses the config's
    architecture for its number. `shape`: channels, height, width of images, if the federation says no more about them;
    otherwise `spec` is what the samples are, without any value, and `codec` the hash of what encodes them, empty as
    long as the site does not know what the sites agree on. `version`: fedkd's. `states`: the names of the requests of
    this federation after which it has kept a state. `frozen`: if the config freezes weights, a hash of those of
    `model`, or of each of the config's architectures.
    """

    name: str
    partition: int
    model: str
    images: int
    test_images: int
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    version: str
    states: tuple[str, ...]
    spec: DataSpec | None = None
    codec: str = ""
    frozen: tuple[str, ...] = ()

    @property
    def reported(self) -> tuple[int, str]:
        """Return what a site cannot change later: its number of training images, a digest of the rest."""
        form = self.shape if self.spec is None else self.spec.canonical()
        about = json.dumps([self.classes, form]).encode()
        return self.images, hashlib.blake2b(about, digest_size=8).hexdigest()

    def to_payload(self) -> Payload:
        """Return the introduction as a payload."""
        counts = {"partition": self.partition, "images": self.images, "test_images": self.test_images}
        shape = dict(zip(_SIDES, self.shape, strict=True)) if self.spec is None else {}
        form = {} if self.spec is None else {"spec": self.spec.canonical(), "codec": self.codec}
        frozen = {"frozen": json.dumps(self.frozen)} if self.frozen else {}
        return Payload(
            numbers={name: float(value) for name, value in {**counts, **shape}.items()},
            strings={
                "name": self.name,
                "model": self.model,
                "version": self.version,
                "classes": json.dumps(self.classes),
                "states": " ".join(self.states),
                **form,
                **frozen,
            },
        )


def is_described(data: FederatedData, sites: RealSites | None) -> bool:
    """Return whether sites of this federation send a description of samples, not only the shape of images."""
    return data.spec.kind != "image" or (sites is not None and sites.spec is not None)


def differences(one: Introduction, sites: RealSites | None, data: FederatedData) -> list[str]:
    """Return in what a site's samples differ from those of the federation, a line each. `data`: the server's."""
    if one.spec is None:
        reason = None if sites is None else misfit(sites, one.classes, one.shape, data.classes)
        return [] if reason is None else [reason]
    found = data.spec.without_values().misfit(one.spec)
    if one.classes != data.classes:
        found.append(f"its classes are {some(one.classes)}; here they are {some(data.classes)}")
    waits = sites is not None and sites.statistics == "federated" and not one.codec
    if not found and one.codec != data.codec.hash and not waits:
        found.append("it encodes its samples with other numbers, categories or words; its data.sites.spec is another")
    found = [on_one_line(line) for line in found]
    more = len(found) - _MOST_DIFFERENCES
    return [*found[:_MOST_DIFFERENCES], f"and {more} more differences"] if more > 0 else found


def other_series(version: str, ours: str) -> str | None:
    """Return why a site with this version of fedkd cannot take part, None if it can: major and minor must be equal."""
    series, own = _SERIES.match(version), _SERIES.match(ours)
    if series is not None and own is not None and series[1] == own[1]:
        return None
    needed = f"any {own[1]}.x" if own is not None else "the same version"
    return f"it runs fedkd {version}, the server {ours}; install {needed} at the site"


def introduction_of(
    records: RecordDict, limits: Limits, described: bool = False, freezes: bool = False
) -> Introduction:
    """Return the introduction in received records. Raises PayloadError if they are not an introduction.

    `described`: see `is_described`. `freezes`: whether the config freezes weights.

    Names of classes and of the model are not checked: only compare them, and show them only through `on_one_line`.
    """
    numbers = {name: (0.0, _MOST) for name in ("images", "test_images")}
    numbers |= {name: (1.0, _MOST_PIXELS) for name in _SIDES if not described}
    strings = ("name", "model", "version", "classes", "states", *(("spec", "codec") if described else ()))
    strings += ("frozen",) if freezes else ()
    expected = Expected(numbers={**numbers, "partition": (-1.0, _MOST)}, strings=strings)
    payload = receive(records, expected, limits)
    classes = _texts_in(payload, "classes")
    if len(set(classes)) < len(classes) or not all(name.isprintable() for name in classes):
        raise PayloadError("string 'classes' has a name twice, or one that cannot be printed")
    if not NAME.fullmatch(payload.strings["name"]) or is_the_servers(payload.strings["name"]):
        raise PayloadError(f"string 'name' is {on_one_line(payload.strings['name'], 80)!r}")
    if parts := [name for name, value in payload.numbers.items() if value != int(value)]:
        raise PayloadError(f"number {parts[0]!r} is not whole")
    spec = _spec_in(payload) if described else None
    whole = {name: int(value) for name, value in payload.numbers.items()}
    return Introduction(
        name=payload.strings["name"],
        partition=whole["partition"],
        model=payload.strings["model"],
        images=whole["images"],
        test_images=whole["test_images"],
        classes=classes,
        shape=() if described else tuple(whole[name] for name in _SIDES),
        version=on_one_line(payload.strings["version"], 40),
        states=tuple(payload.strings["states"].split()),
        spec=spec,
        codec=payload.strings.get("codec", ""),
        frozen=_texts_in(payload, "frozen") if freezes else (),
    )


def _texts_in(payload: Payload, key: str) -> tuple[str, ...]:
    try:
        texts = json.loads(payload.strings[key])
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PayloadError(f"string {key!r} is not a list of names")
    return tuple(texts)


def _spec_in(payload: Payload) -> DataSpec:
    try:
        spec = spec_of(payload.strings["spec"])
    except ValueError as error:
        raise PayloadError(f"string 'spec' is no description of samples: {error}") from error
    if spec != spec.without_values():
        raise PayloadError("string 'spec' has names of categories, or words; a site keeps them")
    return spec

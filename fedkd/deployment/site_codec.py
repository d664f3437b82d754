"""A site's part in the codec that sites agree on: its statistics as a reply, and the agreed file between requests.

With `data.sites.statistics = "federated"` the server asks each site once, before round 1. It sends the agreed file with
a site's next request, and again only if the site does not have it (any more).
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from flwr.app import ConfigRecord, Context, Message

from ..config import Config
from ..data.agreement import MOST_BYTES, Agreement, agreement_of, read_agreement, reason_in, to_json
from ..data.federated_data import FederatedData
from ..data.site_data import SiteData
from ..data.statistics import MIN_ROWS, statistics_of
from ..errors import InputError
from ..files import put_in_place, put_new, read
from ..messages.payload import NODE, ROUND, SITE, Payload
from .site_state import make_private, state_folder

STATISTICS = "query.statistics"  # a message: what are your training samples like
AGREED = "spec.json"  # the agreed file: in a site's state, and in the server's run folder
CODEC, SPEC = "codec", "spec"  # of a request and a reply: the hash of the agreed codec; of a request: the file
NO_CODEC = "it does not have the codec that the sites have agreed on"  # the error of a site that has lost it
_log = logging.getLogger("fedkd")


def is_federated(config: Config) -> bool:
    """Return whether sites agree on the codec before round 1."""
    return config.data.sites is not None and config.data.sites.statistics == "federated"


def about_codec(config: Config, data: FederatedData, known: str) -> dict[str, str]:
    """Return what a request says of the agreed codec: its hash, and to a site that knows another one or none, the file.

    `known`: the hash of the codec that the site has.
    """
    if not is_federated(config) or not data.codec.learned:
        return {}
    found = {CODEC: data.codec.hash}
    return found if known == data.codec.hash else found | {SPEC: agreed_file(data).decode()}


def agreed_file(data: FederatedData) -> bytes:
    """Return the file of the codec of a federation, as `fedkd describe` writes it."""
    return to_json(Agreement(data.codec, data.node_classes))


def statistics_reply(config: Config, data: FederatedData, message: Message) -> Message:
    """Return a site's statistics. Raises InputError if the config does not ask for them."""
    if not is_federated(config) or not isinstance(data, SiteData):
        raise InputError("the server asks for statistics, but data.sites.statistics is not 'federated'.")
    about_round = message.content.config_records[ROUND]
    train = data.train_of(int(cast(int, about_round[NODE])))
    if len(train.labels) < MIN_ROWS:
        _log.warning(
            "This site has %d training %s, fewer than %d: it sends no statistics, and takes part with the codec of the "
            "others.",
            len(train.labels),
            data.spec.noun(len(train.labels)),
            MIN_ROWS,
        )
    found = statistics_of(config.data, data.spec, data.node_classes, train)
    arrays = {
        **dict(zip(("count", "mean", "squares"), found.moments, strict=True)),
        "known": found.known,
        "missing": found.missing,
    }
    payload = Payload(statistics={name: torch.from_numpy(array) for name, array in arrays.items() if len(array)})
    reply = Message(payload.to_records(), reply_to=message)
    reply.content[SITE] = ConfigRecord({NODE: about_round[NODE], "request": about_round["request"]})
    return reply


def kept_codec(config: Config, context: Context, federation: str) -> Agreement | None:
    """Return what the sites of a federation have agreed on, if this site has it. None also where the codec is given."""
    if not is_federated(config):
        return None
    folder = state_folder(context.node_config, federation)
    try:
        if AGREED in context.state:
            return _fitting(config, str(context.state.config_records[AGREED][SPEC]).encode())
        if folder is not None and (folder / AGREED).exists():
            return _fitting(config, read(folder / AGREED, MOST_BYTES))
    except (OSError, ValueError) as error:
        _log.warning("What the sites have agreed on cannot be read (%s); the server sends it again.", reason_in(error))
    return None


def codec_for(config: Config, about_round: ConfigRecord, context: Context, federation: str) -> Agreement | None:
    """Return the agreement that a request needs: the one that it brings, which is kept from now on, or the kept one.

    None if this site has not that one. Raises InputError if what the request brings does not fit `data.sites.spec`.
    """
    if SPEC not in about_round:
        found = kept_codec(config, context, federation)
        return found if found is not None and found.codec.hash == about_round.get(CODEC) else None
    text = str(about_round[SPEC])
    try:
        found = _fitting(config, text.encode())
    except ValueError as error:
        raise InputError(f"what the sites have agreed on cannot be used: {reason_in(error)}.") from error
    context.state[AGREED] = ConfigRecord({SPEC: text})
    folder = state_folder(context.node_config, federation)
    if folder is not None:
        make_private(folder.parent)
        make_private(folder)
        partial = folder / f".{AGREED}.partial"
        put_new(partial, text.encode())
        put_in_place(partial, folder / AGREED)
    return found


def _fitting(config: Config, content: bytes) -> Agreement:
    """Return the agreement in a file. Raises ValueError if it is none of this federation."""
    found = agreement_of(content)
    if not found.codec.learned:
        raise ValueError("its codec is null")
    expected = read_agreement(config.data)
    if (found.codec.spec, found.classes) != (expected.codec.spec, expected.classes):
        raise ValueError("it describes other samples, or has other classes, than data.sites.spec")
    return found

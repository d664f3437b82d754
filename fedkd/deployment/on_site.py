"""The code at a real site: its own data and model, and the ClientApp of any strategy.

The keys of a SuperNode's `--node-config`:
`data`: the site's own samples, such as `npz:/srv/scans.npz`, `images:/srv/scans`, `file:/srv/heart.csv`, or a TOML file
with `file` and its columns; or `partition-id`: a part of the config's samples, for tests. `name`: the site's name in
the federation. `model`: its own architecture, if it has one.
`state`: a folder for the site's state between requests, so that it survives a restart of the SuperNode.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from ..config import Config, ModelConfig, NamedTable
from ..core.client_app import call, make_client_app
from ..core.environment import Environment, prepare_as_engine
from ..core.setup import Setup, make_setup
from ..data.agreement import Agreement
from ..data.site_data import SiteData, site_data
from ..errors import InputError, described, on_one_line
from ..files import NotWritten
from ..messages.arrays import serialised
from ..messages.flower import error_reply
from ..messages.ledger import count_bytes
from ..messages.payload import NODE, ROUND, SITE
from ..stopping import Stopped, check, stoppable
from .introduction import JOIN, LOST, NAME, REFUSE, Introduction, is_described
from .roster import is_the_servers
from .site_codec import (
    AGREED,
    CODEC,
    NO_CODEC,
    SPEC,
    STATISTICS,
    codec_for,
    is_federated,
    kept_codec,
    statistics_reply,
)
from .site_requests import REQUESTS, count_request, is_asked_for
from .site_state import (
    Version,
    in_context,
    keep_state,
    make_private,
    recall_state,
    requests_on_disk,
    state_folder,
    versions_in,
)

_ENDING = r"\.(?:npz|npy|png|jpe?g|bmp|gif|tiff?|webp|dcm|nii|gz|csv|tsv|json|h5|hdf5|svs|mha|mhd|nrrd|zip|txt)\b"
_PATH = re.compile(
    rf"(['\"])[^'\"\n]*(?:[/\\]|{_ENDING})[^'\"\n]*\1"  # quoted text with a separator or a known ending
    rf"|(?:[A-Za-z]:)?[\w.~-]*[/\\][^'\":;,()\n]*?{_ENDING}[\w.]*"  # up to an ending, spaces and all
    rf"|(?:[A-Za-z]:)?[\w.~-]*[/\\][^\s'\":;,()]+|[^\s'\":;,()]+{_ENDING}[\w.]*",
    re.IGNORECASE,
)
_MOST_REASONS = 10_000  # letters
ENDED = "ended at the site by SIGTERM"  # the error of a site whose task was ended
_log = logging.getLogger("fedkd")


class SiteApp(ClientApp):
    """Flower's ClientApp of the strategy that a run's config names, with the data of its site.

    `read`: returns the config of a run from Flower's run config.
    """

    def __init__(self, read: Callable[[UserConfig], Config]) -> None:
        super().__init__()
        self._read = read

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message. Errors are logged here in full, and sent to the server without paths.

        SIGTERM ends the work on this message, and the server gets the reason. The site's state stays as it was.
        """
        if not is_asked_for() or "state" not in context.node_config:
            return self._reply(message, context)
        begin, down = time.monotonic(), count_bytes(message.content)
        reply = self._reply(message, context)
        _count(message, reply, down, time.monotonic() - begin, Path(str(context.node_config["state"])))
        return reply

    def _reply(self, message: Message, context: Context) -> Message:
        try:
            with stoppable():
                reply = self._answer(message, context)
                check()  # a signal that code in between has swallowed
                if not reply.has_error():
                    reply.content = serialised(reply.content)
                return reply
        except Stopped as stopped:
            if stopped.number != signal.SIGTERM:
                signal.raise_signal(stopped.number)  # Flower has handlers of its own, which end its process in order
                raise
            _log.error("%s", ENDED)
            return error_reply(message, ENDED)
        except Exception as error:
            _log.error("%s", traceback.format_exc() if not isinstance(error, InputError) else error)
            return error_reply(message, without_paths(described(error)))

    def _answer(self, message: Message, context: Context) -> Message:
        about_round = message.content.config_records.get(ROUND, ConfigRecord())
        if message.metadata.message_type == REFUSE:
            for reason in str(about_round.get("reason", "no reason given"))[:_MOST_REASONS].split("\n"):
                _log.error("The server refused this site: %s", on_one_line(reason))
            return Message(RecordDict(), reply_to=message)
        config = self._read(context.run_config)
        kind, federation = message.metadata.message_type, str(about_round["federation"])
        if kind in (JOIN, STATISTICS):
            agreed = kept_codec(config, context, federation)
        else:
            agreed = codec_for(config, about_round, context, federation)
            if agreed is None and is_federated(config):
                _log.error(
                    "This site does not have the codec that the sites have agreed on; the server sends it again."
                )
                return error_reply(message, NO_CODEC)
        setup = setup_at(config, context.node_config, agreed)
        environment = setup.environment
        if SPEC in about_round:
            _log.info("The codec that the sites have agreed on is %s.", environment.data.codec.hash)
            _log_notes(environment)
        if kind == STATISTICS:
            return statistics_reply(config, environment.data, message)
        if kind == JOIN:
            introduction = introduce(environment, context, federation)
            return Message(introduction.to_payload().to_records(), reply_to=message)
        node = cast(int, about_round[NODE])
        if (own := _own_model(context.node_config)) is not None:
            environment.architecture_numbers[node] = _number_of(own, environment.config.model)
        return _answer_request(make_client_app(setup.strategy, lambda: setup), message, context, config)


def _count(message: Message, reply: Message, down: dict[str, int], seconds: float, state: Path) -> None:
    """Add a request to this site's counts. A disk that refuses them is named in the log, and disturbs nothing."""
    try:
        count_request(
            state.expanduser() / REQUESTS,
            message.metadata.message_type.rpartition(".")[2],
            failed=reply.has_error(),
            seconds=seconds,
            down=down,
            up={} if reply.has_error() else count_bytes(reply.content),
            now=time.time(),
        )
    except NotWritten as error:
        _log.warning("The metrics of this site are behind: %s", error)


def _answer_request(app: ClientApp, message: Message, context: Context, config: Config) -> Message:
    """Run a client with the state of this site that counts; store the new one beside it, as its reply may be refused.

    If there is an error, the context and the files stay as they are.
    """
    about_round = message.content.config_records[ROUND]
    accepted, folder = str(about_round["accepted"]), state_folder(context.node_config, str(about_round["federation"]))
    counting = [version for version in versions_in(context.state) if version.request <= accepted]
    before, damaged = counting[-1] if counting else None, False
    if before is None and folder is not None:
        before, damaged = recall_state(folder, accepted)
    if before is None and accepted:
        _log.warning("The state of this site is not here%s; it starts afresh.", _hint(folder))
        if not about_round["lost"]:  # the server has to know before the site takes part
            return error_reply(message, LOST)
    state = RecordDict() if before is None else before.state
    inner = Context(context.run_id, context.node_id, context.node_config, RecordDict(dict(state)), context.run_config)
    reply = call(app, message, inner)
    if reply.has_error():
        _log.error("Round %s: %s", message.metadata.group_id, reply.error.reason)
        return error_reply(message, without_paths(reply.error.reason or ""))
    versions = [] if before is None else [before]
    if not _is_same(inner.state, state):
        after = Version(str(about_round["request"]), inner.state)
        if folder is None:
            versions.append(after)
        else:  # the one before is on disk
            keep_state(folder, after, config.checkpoint, cast(int, about_round["first_round"]))
            versions = [after]
    agreed = RecordDict({name: record for name, record in context.state.items() if name == AGREED})
    context.state = serialised(RecordDict({**agreed, **in_context(versions)}))
    # the server compares which request this answers, because replies can be mixed up on their way
    which = {name: about_round[name] for name in (NODE, "request", CODEC) if name in about_round}
    reply.content[SITE] = ConfigRecord({**which, "keeps": bool(inner.state), "damaged": damaged})
    return reply


def _is_same(one: RecordDict, other: RecordDict) -> bool:
    """Return whether two states consist of the same records: a client replaces what it changes."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _hint(states: Path | None) -> str:
    return "" if states is not None else " (--node-config 'state=\"FOLDER\"' would have kept it over the restart)"


def without_paths(text: str) -> str:
    """Return the text of an error without parts that look like paths or file names, which may name patients."""
    return _PATH.sub("<path>", text)


_setups: dict[str, Setup] = {}


def setup_at(config: Config, node_config: UserConfig, agreed: Agreement | None = None) -> Setup:
    """Return this process's strategy and environment of a config at a site; the first call makes them.

    `agreed`: what the sites have agreed on, if they have. Threads and device are those of the config's engine, so that
    a site computes the same as a simulated node. Raises InputError if the site's data are missing or wrong.
    """
    own = {key: node_config[key] for key in ("data", "model") if key in node_config}
    key = json.dumps([config.model_dump(mode="json"), own, None if agreed is None else agreed.codec.hash])
    if key not in _setups:
        model = _own_model(node_config)
        if model is not None and model not in [a.name for a in config.model.architectures]:
            names = [*config.model.architectures, NamedTable(name=model)]
            config = config.model_copy(update={"model": ModelConfig(names=names)})
        _setups[key] = make_setup(config, _own_data(config, node_config, agreed), prepare_as_engine(config))
    return _setups[key]


def _own_data(config: Config, node_config: UserConfig, agreed: Agreement | None) -> SiteData | None:
    """Return the site's own data; None if it has a part of the config's images."""
    data = node_config.get("data")
    if data is None and "partition-id" not in node_config:
        raise InputError("this site has no data: set data, or partition-id for tests, in --node-config.")
    if data is None and config.data.sites is not None:
        raise InputError("data.sites: sites bring images of their own; this one has no data in --node-config.")
    if data is None:
        return None
    if config.data.sites is None:
        named = ", ".join(config.data.set_names)
        raise InputError(
            f"data = {data!r} in --node-config: the config has images of its own ({named}); with "
            "data.sites sites bring theirs."
        )
    return site_data(config.data, str(data), config.seed, agreed)


def _own_model(node_config: UserConfig) -> str | None:
    return str(node_config["model"]) if "model" in node_config else None


def _number_of(name: str, model: ModelConfig) -> int:
    return [architecture.name for architecture in model.architectures].index(name)


def _try_shortest(environment: Environment, number: int) -> None:
    """Raise InputError if an architecture cannot take the site's shortest sample. The server gets no length of it."""
    try:
        environment.refuse_short(number)
    except InputError as error:
        _log.error("%s", error)
        name = environment.config.model.architectures[number].name
        raise InputError(
            f"{name} cannot take its shortest {environment.data.spec.noun(1)}; the site's own log says why."
        ) from None


def _log_notes(environment: Environment) -> None:
    for note in environment.data.notes:
        _log.info("data: %s", note)


def introduce(environment: Environment, context: Context, federation: str) -> Introduction:
    """Return this site's introduction. Raises InputError for a wrong name, model or state folder."""
    node_config, data = context.node_config, environment.data
    partition = -1 if isinstance(data, SiteData) else int(cast(int, node_config["partition-id"]))
    default = f"partition-{partition}" if partition >= 0 else f"site-{context.node_id}"
    name = str(node_config.get("name", default))
    if not NAME.fullmatch(name):
        raise InputError(
            f"name = {name!r} in --node-config: valid are letters, digits, and between them spaces and the signs - . _"
        )
    if is_the_servers(name):
        raise InputError(
            f"name = {name!r} in --node-config: this could be the server or a node's number; choose another."
        )
    if not isinstance(data, SiteData) and not 0 <= partition < data.clients:
        raise InputError(f"partition-id = {partition}: the config has partitions 0 to {data.clients - 1}.")
    model = _own_model(node_config) or ""
    numbers: Sequence[int] = range(len(environment.config.model.architectures))
    if model:
        numbers = [_number_of(model, environment.config.model)]
        environment.model(numbers[0])  # raises InputError if it cannot be built
    for number in numbers:
        _try_shortest(environment, number)
    if "state" in node_config:
        folder = Path(str(node_config["state"])).expanduser()
        try:
            make_private(folder)
            (folder / ".writable").touch()
        except OSError as error:
            raise InputError(f"state in --node-config: the folder cannot be written: {error.strerror}.") from error
    states = [version.request for version in versions_in(context.state)]
    if (kept := state_folder(node_config, federation)) is not None:
        states += requests_on_disk(kept)
    _log_notes(environment)
    described = is_described(data, environment.config.data.sites)
    own = data.described if isinstance(data, SiteData) else data.spec
    return Introduction(
        name=name,
        partition=partition,
        model=model,
        images=len(data.train_of(partition).labels),
        test_images=len(data.test_of(partition).labels),
        classes=data.classes,
        shape=() if described else data.image_shape,
        version=version("fedkd"),
        states=tuple(states),
        spec=own.without_values() if described else None,
        codec=data.codec.hash if described else "",
        frozen=tuple(map(environment.frozen_hash, numbers)) if environment.freezes else (),
    )

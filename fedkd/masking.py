"""Secrets in configs and texts: passwords in URIs, and options whose names say that they are keys or tokens."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"  # instead of a secret

_WORDS = (
    "(?:(?:api|access|private|secret)[-_]?key|token|passw(?:or)?d|passphrase|secret|credentials?|authorization|bearer)"
)
_NAME = re.compile(rf"(?:^|[^a-z]){_WORDS}(?:$|[^a-z])")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_IN_URI = re.compile(r"(?<=://)[^/?#\s\"']*@")
_GIVEN = re.compile(
    rf"(?i)((?<![a-z]){_WORDS}(?:\"\s*:|'\s*:|\s*=)\s*(?:bearer\s+)?)(\"[^\"]*\"|'[^']*'|[^\s,;&\"'}}\]]+)"
)


def is_secret(name: str) -> bool:
    """Return whether an option with this name has a secret: `api_key`, `apiToken`, `WANDB_API_KEY`."""
    return _NAME.search(_HUMP.sub("_", name).lower()) is not None


def masked_text(text: str) -> str:
    """Return a text with `***` instead of the secrets in URIs (`//user:password@`) and after names (`token=...`)."""
    return _GIVEN.sub(rf"\1{HIDDEN}", _IN_URI.sub(f"{HIDDEN}@", text))


def masked(value: Any, *, secret: bool = False) -> Any:
    """Return a config's tables with `***` instead of secrets. `secret`: whether the name of the value is one's."""
    if isinstance(value, dict):
        return {name: masked(one, secret=secret or is_secret(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [masked(one, secret=secret) for one in value]
    if secret and value is not None and not isinstance(value, bool):
        return HIDDEN
    return masked_text(value) if isinstance(value, str) else value


def is_hidden(value: Any) -> bool:
    """Return whether a secret is missing in a value, because it comes from a copy of a config."""
    return isinstance(value, str) and (value == HIDDEN or f"://{HIDDEN}@" in value or f"={HIDDEN}" in value)


def without_hidden(text: str) -> str | None:
    """Return an option without the secret that is missing in it; None if nothing is left."""
    return None if text == HIDDEN or f"={HIDDEN}" in text else text.replace(f"://{HIDDEN}@", "://")

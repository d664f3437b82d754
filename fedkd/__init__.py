"""fedkd: federated knowledge distillation. Strategies import what they need from here.

Names are loaded when first used, so that `import fedkd` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.client import Client as Client
    from .core.client import GlobalModelClient as GlobalModelClient
    from .core.environment import Environment as Environment
    from .core.round import Replies as Replies
    from .core.round import Round as Round
    from .core.strategy import Strategy as Strategy
    from .errors import InputError as InputError
    from .errors import RunError as RunError
    from .messages.merging import weighted_mean as weighted_mean
    from .messages.payload import ArraySpec as ArraySpec
    from .messages.payload import Expected as Expected
    from .messages.payload import Payload as Payload
    from .messages.payload import like as like
    from .models.zoo import Classifier as Classifier
    from .runs.trackers import Tracker as Tracker

_HOMES = {
    "Tracker": "runs.trackers",
    "Classifier": "models.zoo",
    "ArraySpec": "messages.payload",
    "Client": "core.client",
    "Environment": "core.environment",
    "Expected": "messages.payload",
    "GlobalModelClient": "core.client",
    "InputError": "errors",
    "Payload": "messages.payload",
    "Replies": "core.round",
    "Round": "core.round",
    "RunError": "errors",
    "Strategy": "core.strategy",
    "like": "messages.payload",
    "weighted_mean": "messages.merging",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
    return getattr(import_module(f"fedkd.{_HOMES[name]}"), name)

"""fedkd: federated knowledge distillation. Strategies import what they need from here.

Names are loaded when first used, so that `import fedkd` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client as Client
    from .client import GlobalModelClient as GlobalModelClient
    from .environment import Environment as Environment
    from .errors import InputError as InputError
    from .errors import RunError as RunError
    from .payload import ArraySpec as ArraySpec
    from .payload import Expected as Expected
    from .payload import Payload as Payload
    from .payload import like as like
    from .payload import weighted_mean as weighted_mean
    from .strategy import Replies as Replies
    from .strategy import Round as Round
    from .strategy import Strategy as Strategy

_HOMES = {
    "ArraySpec": "payload",
    "Client": "client",
    "Environment": "environment",
    "Expected": "payload",
    "GlobalModelClient": "client",
    "InputError": "errors",
    "Payload": "payload",
    "Replies": "strategy",
    "Round": "strategy",
    "RunError": "errors",
    "Strategy": "strategy",
    "like": "payload",
    "weighted_mean": "payload",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
    return getattr(import_module(f"fedkd.{_HOMES[name]}"), name)

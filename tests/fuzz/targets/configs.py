"""Run files: any bytes, and tables with odd values."""

from __future__ import annotations

from typing import Any

import tomli_w
from helpers import TINY, merged

from fedkd.config import parse_config, read_config
from fuzz.frame import new_folder, only_refusals
from fuzz.mutations import ODD_OF_TOML, damaged, with_odd_values

WHOLE = merged(TINY, {"trackers": ["tensorboard"], "payload_limits": {"weights": 100}, "engine": {"threads": 1}})

INPUTS = damaged(tomli_w.dumps(WHOLE).encode()) | with_odd_values(WHOLE, ODD_OF_TOML)


def target(drawn: bytes | dict[str, Any]) -> None:
    with only_refusals():
        if isinstance(drawn, dict):
            parse_config(drawn)
            return
        with new_folder() as folder:
            (folder / "run.toml").write_bytes(drawn)
            read_config(folder / "run.toml")

"""What a site counts of the requests that it gets, in a file, for its metrics endpoint.

Each request runs in a process of its own, so the counts are kept in the folder `state`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import pydantic

from ..files import as_json, parse_json, read, write

REQUESTS = "requests.json"
_MOST_BYTES = 10**6
_Count = Annotated[int, pydantic.Field(ge=0, lt=2**63)]


class Requests(pydantic.BaseModel):
    """Counts by request (`answered`, `failed`, `seconds`) and bytes by kind (`down`, `up`). `last`: Unix seconds."""

    model_config = pydantic.ConfigDict(extra="forbid")

    answered: dict[str, _Count] = {}
    failed: dict[str, _Count] = {}
    seconds: dict[str, Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]] = {}
    down: dict[str, _Count] = {}
    up: dict[str, _Count] = {}
    last: float | None = None


def is_asked_for() -> bool:
    """Return whether this site has a metrics endpoint, by the environment variable `FEDKD_METRICS`."""
    return bool(os.environ.get("FEDKD_METRICS"))


def read_requests(path: Path) -> Requests:
    """Return the counts in a file; all 0 if it is not there or damaged."""
    try:
        return Requests.model_validate(parse_json(read(path, _MOST_BYTES)))
    except (OSError, ValueError):
        return Requests()


def count_request(
    path: Path, request: str, *, failed: bool, seconds: float, down: dict[str, int], up: dict[str, int], now: float
) -> None:
    """Add a request to the counts in a file. `down`, `up`: bytes by kind. Raises NotWritten."""
    found = read_requests(path)
    outcomes = found.failed if failed else found.answered
    outcomes[request] = outcomes.get(request, 0) + 1
    found.seconds[request] = found.seconds.get(request, 0.0) + seconds
    for total, sizes in ((found.down, down), (found.up, up)):
        for kind, size in sizes.items():
            total[kind] = total.get(kind, 0) + size
    found.last = now
    write(path, as_json(found.model_dump()))

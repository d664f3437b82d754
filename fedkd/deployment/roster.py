"""The roster: the sites that have joined a federation, in a file, so that a restarted server recognises them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic

from ..errors import InputError, on_one_line, reason_of
from ..files import as_json, parse_json, read, write

ROSTER = "sites.json"
_MOST_BYTES = 2**26
_SEPARATORS = re.compile(r"[ ._-]+")
_ALIKE = str.maketrans("il|o", "1110")


def looks_like(name: str) -> str:
    """Return what a name looks like: equal for names that people would take for each other (`Site-1`, `site_l.`)."""
    return _SEPARATORS.sub("-", name.casefold()).strip("-").translate(_ALIKE)


def is_the_servers(name: str) -> bool:
    """Return whether a site of this name could be taken for the server or for the number of a node."""
    return name.isdecimal() or _SERVERS.fullmatch(looks_like(name)) is not None


_WORDS = ("fedkd", "flower", "server", "superlink", "supernode", "global", "aggregator", "all", "total", "mean", "nan")
_SERVERS = re.compile(f"({'|'.join(map(looks_like, _WORDS))})(-?[0-9]+)?|{looks_like('node')}-?[0-9]{{1,9}}")


class _File(pydantic.BaseModel):
    """What the file must be."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    federation: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{32}$")]
    numbers: dict[str, Annotated[int, pydantic.Field(ge=0, lt=2**53)]]
    ids: dict[str, int]
    reported: dict[str, Annotated[tuple[int, str], pydantic.Field(strict=False)]] = {}
    codec: Annotated[str, pydantic.Field(pattern=r"^([0-9a-f]{24})?$")] = ""


@dataclass
class Roster:
    """The sites that have joined a federation, in a file, so that a restarted server recognises them.

    `numbers`: the numbers of sites, by name. `ids`: the ids of their SuperNodes in Flower. `reported`: what each
    has reported at the first contact and cannot change: its number of training images, a digest of classes and shape.
    `codec`: the hash of the codec that the sites have agreed on; empty if they have not, or if it was given.
    """

    federation: str = field(default_factory=lambda: uuid.uuid4().hex)
    numbers: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    reported: dict[str, tuple[int, str]] = field(default_factory=dict)
    codec: str = ""
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Return the roster in a file. Raises InputError if it is damaged."""
        try:
            table = parse_json(read(path, _MOST_BYTES, path.parent))
            roster = cls(**_File.model_validate(table).model_dump(), path=path)
        except (OSError, ValueError) as error:
            reason = (
                "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
                if isinstance(error, pydantic.ValidationError)
                else reason_of(error)
            )
            raise InputError(f"{path} is damaged: {on_one_line(reason)}") from error
        if len(set(roster.numbers.values())) < len(roster.numbers):
            raise InputError(f"{path} is damaged: two sites have the same number")
        return roster

    def write(self) -> None:
        """Write the file, whole or not at all. Raises NotWritten."""
        if self.path is not None:
            write(self.path, as_json({key: value for key, value in vars(self).items() if key != "path"}, indent=2))

"""The roster: the sites that have joined a federation, in a file, so that a restarted server recognises them."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError

ROSTER = "sites.json"


@dataclass
class Roster:
    """The sites that have joined a federation, in a file, so that a restarted server recognises them.

    `numbers`: the numbers of sites, by name. `ids`: the ids of their SuperNodes in Flower.
    """

    federation: str = field(default_factory=lambda: uuid.uuid4().hex)
    numbers: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Roster:
        """Return the roster in a file. Raises InputError if it is damaged."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")), path=path)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error

    def write(self) -> None:
        """Write the file atomically."""
        if self.path is not None:
            table = {key: value for key, value in vars(self).items() if key != "path"}
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self.path)

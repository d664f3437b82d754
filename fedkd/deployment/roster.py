"""The sites that a federation has met, kept in a file so that a restarted server knows them again."""

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
    """The sites that a federation has met, kept in a file so that a restarted server knows them again.

    `numbers`: of sites by name. `ids`: of their SuperNodes in Flower. `keeping`: of sites that said that they hold a
    state, by name, the round in which they first did.
    """

    federation: str = field(default_factory=lambda: uuid.uuid4().hex)
    numbers: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    keeping: dict[str, int] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def read(cls, path: Path, first_round: int) -> Roster:
        """Return the roster in a file, for a run that goes on with a round. Raises InputError for a damaged one."""
        try:
            roster = cls(**json.loads(path.read_text()), path=path)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        roster.keeping = {name: since for name, since in roster.keeping.items() if since < first_round}
        return roster

    def write(self) -> None:
        """Write it, whole or not at all."""
        if self.path is not None:
            table = {key: value for key, value in vars(self).items() if key != "path"}
            partial = self.path.with_name(f".{self.path.name}.partial")
            partial.write_text(json.dumps(table, indent=2) + "\n")
            os.replace(partial, self.path)

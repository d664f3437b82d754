"""sites.json: the sites that have joined a federation."""

from __future__ import annotations

import json

from fedkd.deployment.roster import ROSTER, Roster
from fuzz.frame import new_folder, only_refusals
from fuzz.mutations import damaged, with_odd_values

TABLE = {
    "federation": "0123456789abcdef" * 2,
    "numbers": {"site-1": 0, "site-2": 1},
    "ids": {"site-1": 2**64 - 5, "site-2": 7},
    "reported": {"site-1": [67, "ab"], "site-2": [5, "cd"]},
}


INPUTS = damaged(json.dumps(TABLE).encode()) | with_odd_values(TABLE).map(
    lambda table: json.dumps(table).encode("utf-8", "replace")
)


def target(content: bytes) -> None:
    with new_folder() as folder:
        (folder / ROSTER).write_bytes(content)
        with only_refusals():
            roster = Roster.read(folder / ROSTER)
            roster.write()
            assert Roster.read(folder / ROSTER) == roster

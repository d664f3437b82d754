"""Bytes a round of every strategy in one common setting, as serialised, a node up and down.

Ten nodes with lenet5 (61,706 parameters), ten classes, 1,000 transfer images, the last of three rounds (in the first
some methods send nothing down yet). Digits scaled to 28 x 28 stand in for MNIST: bytes do not depend on the images.

    python benchmarks/traffic.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fedkd.config import parse_config
from fedkd.registry import names
from fedkd.runs.run import run

NODES = 10
OPTIONS: dict[str, dict[str, Any]] = {
    "feddf": {"steps": 1},
    "fedftg": {"iterations": 1, "generator_width": 4},
    "fedavg_virtual": {"initial_steps": 0},
    "fedlgd": {"initial_steps": 0, "local_steps": 0, "global_steps": 1},
    "fedmd": {"public_epochs": 0, "private_epochs": 0},
    "vhl": {"noise_per_class": 1, "generator_width": 4},
}


def traffic(strategy: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes that one node sends and gets in a round, by kind."""
    config = parse_config(
        {
            "rounds": 3,
            "data": {
                "name": "digits",
                "size": 28,
                "partition": {"scheme": "iid", "clients": NODES},
                "public": {"size": 1000},
            },
            "model": {"name": "lenet5"},
            "strategy": {"name": strategy, **OPTIONS.get(strategy, {})},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run(config, Path(folder) / "run")
        last = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    up, down = ({k: v // NODES for k, v in last["bytes"][way].items()} for way in ("up", "down"))
    return up, down


def main() -> None:
    """Print the table."""
    print("| strategy | up, bytes | down, bytes | of which |\n|---|---|---|---|")
    for name in names("strategies"):
        up, down = traffic(name)
        kinds = ", ".join(sorted({*up, *down} - {"numbers", "statistics", "indices"})) or "nothing"
        print(f"| `{name}` | {sum(up.values()):,} | {sum(down.values()):,} | {kinds} |", flush=True)


if __name__ == "__main__":
    main()

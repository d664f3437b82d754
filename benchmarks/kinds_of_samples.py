"""FedAvg, pooled training and training alone on the sets that come with fedkd: the table of docs/data.md.

    python benchmarks/kinds_of_samples.py            # five seeds of each; a line of JSON for each row

Each row is written when it is there, to benchmarks/results/kinds-of-samples.jsonl.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedkd.config import parse_config
from fedkd.runs.run import run

RESULTS = Path(__file__).parent / "results" / "kinds-of-samples.jsonl"
SETS: dict[str, tuple[dict[str, Any], int, int, float]] = {  # model, nodes of equal parts, rounds, learning rate
    "heart": ({"name": "table_mlp", "hidden": [64, 64]}, 4, 8, 1e-3),
    "spoken_digits": ({"name": "inception_small"}, 6, 12, 3e-3),
    "sentences": ({"name": "text_cnn", "width": 32, "filters": 32}, 3, 6, 3e-3),
}


def accuracy(name: str, scheme: dict[str, Any], strategy: str, seed: int) -> float:
    """Return the accuracy on the global test samples at the end; of nodes that train alone, their mean."""
    model, _, rounds, rate = SETS[name]
    config = {
        "seed": seed, "rounds": rounds, "data": {"name": name, "partition": scheme}, "model": model,
        "train": {"epochs": 2, "optimizer": {"name": "adamw", "lr": rate}},
        "strategy": {"name": strategy}, "evaluate": {"every": rounds},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        final = run(parse_config(config), Path(folder) / "run")["final"]
    return float(final.get("global/accuracy", final.get("personal_global_test/accuracy")))


def main() -> None:
    """Run all rows of the sets that are named, by default of all."""
    for name in sys.argv[1:] or SETS:
        for scheme in ({"scheme": "iid", "clients": SETS[name][1]}, {"scheme": "natural"}):
            for strategy in ("fedavg", "central", "local"):
                found = [accuracy(name, scheme, strategy, seed) for seed in range(5)]
                row = {"set": name, "scheme": scheme["scheme"], "strategy": strategy, "all": found}
                line = json.dumps(row | {"mean": statistics.mean(found), "sd": statistics.stdev(found)})
                print(line, flush=True)
                with RESULTS.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()

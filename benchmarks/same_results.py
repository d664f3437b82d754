"""Whether two checkouts of fedkd have the same results: every quick config, run by both, compared byte for byte.

`python benchmarks/same_results.py OLD NEW`: each a checkout with its `.venv` (as `make test` leaves it). Compared is
each line of metrics.jsonl but for `seconds`: metrics, logs, failures, bytes. Runs that are there already are not run
again, so that an interrupted comparison goes on; `--out` says where they are kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run what is missing, print a line for each config, exit with 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/same-results"))
    arguments = parser.parse_args()
    names = sorted(path.parent.name for path in (arguments.old / "configs").glob("*/quick.toml"))
    differing = []
    for name in names:
        old, new = (
            results(checkout.resolve(), name, arguments.out / side / name)
            for side, checkout in (("old", arguments.old), ("new", arguments.new))
        )
        difference = first_difference(old, new)
        print(f"{name}: {'the same' if difference is None else difference}", flush=True)
        differing += [name] if difference is not None else []
    print(f"{len(names) - len(differing)} of {len(names)} configs have the same results")
    sys.exit(1 if differing else 0)


def results(checkout: Path, name: str, out: Path) -> dict[str, str]:
    """Return the metrics of a run of a quick config, by line and key, without what the clock decides."""
    summary = out / "summary.json"
    if not summary.is_file() or json.loads(summary.read_text())["status"] != "completed":
        shutil.rmtree(out, ignore_errors=True)
        command = "distill" if name == "distill" else "run"
        out.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [checkout / ".venv/bin/fedkd", command, checkout / f"configs/{name}/quick.toml", "--out", out.resolve()],
            check=True,
            cwd=checkout,
            capture_output=True,
        )
    found: dict[str, str] = {}
    for number, text in enumerate((out / "metrics.jsonl").read_text().splitlines()):
        line = json.loads(text)
        line.pop("seconds", None)
        found |= {f"line {number + 1}, {key}": json.dumps(value) for key, value in line.items()}
    return found


def first_difference(old: dict[str, str], new: dict[str, str]) -> str | None:
    """Return the first place where two results differ, with both values in short; None where they are equal."""
    for place in [*old, *(place for place in new if place not in old)]:
        if old.get(place) != new.get(place):
            before, after = (str(side.get(place, "missing"))[:120] for side in (old, new))
            return f"{place}: was {before}, is {after}"
    return None


if __name__ == "__main__":
    main()

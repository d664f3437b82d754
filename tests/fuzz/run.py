"""Fuzz one target for longer than its test does: `python tests/fuzz/run.py TARGET --cases 100000 [--seed N]`.

A failure ends it, with the smallest input that fails: make it a fixed example in the test of the module at fault.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz.frame import NAMES, fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz one target.")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first thousand; the next has the next seed")
    chosen = parser.parse_args()
    fuzz(chosen.target, chosen.cases, chosen.seed, lambda done: print(f"{done} cases", flush=True))


if __name__ == "__main__":
    main()

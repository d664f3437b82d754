"""What a CUDA machine proves and measures: checks first, then seconds per round beside the plain loop and others.

    python benchmarks/gpu.py                        # all rows in 8 minutes; images of $FEDKD_DATA, or random ones
    python benchmarks/gpu.py --minutes 3 --only start check
    python benchmarks/gpu.py --device cpu --tiny    # the same rows on a CPU, as small as they can be

Each row runs in a process of its own, the cheapest and most telling ones first. Its result, or why it has none, is one
line of JSON in `benchmarks/results/gpu-CARD.jsonl` before the next row begins. A machine without a network gets fedkd
by `scripts/airgap.sh`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["PYTHONSAFEPATH"] = "1"  # of the rows' processes: the current folder may have an uninstalled fedkd

from gpu_rows import rows
from gpu_work import HERE, Result, Scale, Skipped

WORKERS = multiprocessing.get_context("forkserver")  # a process that has imported torch, and has not started CUDA
WORKERS.set_forkserver_preload(["torch", "fedkd.runs.run", "fedkd.simulations.inline", "engine"])


def run_row(name: str, scale: Scale, log: Path, pipe: Connection) -> None:
    """Run one row in this process, and send its result."""
    os.setsid()  # the processes that it starts can be ended with it
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    if name.endswith("/cpu") and not name.startswith("check"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        result: Result = {"status": "ok", **rows()[name][1](scale)}
    except Skipped as reason:
        result = {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        trace = traceback.format_exc()[-2000:]
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}", "trace": trace}
    pipe.send(result)


def measure(name: str, scale: Scale, limit: float) -> Result:
    """Run one row in a process of its own; return its result, or why it has none."""
    begin, log = time.perf_counter(), scale.sets / "log"
    mine, theirs = WORKERS.Pipe(duplex=False)
    process = WORKERS.Process(target=run_row, args=(name, scale, log, theirs))
    process.start()
    theirs.close()
    try:
        if mine.poll(limit):
            result: Result = mine.recv()
            process.join(10)
        else:
            result = {"status": "failed", "reason": f"no result within {limit:.0f} s"}
    except EOFError:
        process.join()
        trace = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        result = {"status": "failed", "reason": f"ended with code {process.exitcode}", "trace": trace}
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return result | {"took": round(time.perf_counter() - begin, 1)}


def main() -> None:
    """Run the rows, and write each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as small as it can be, on random images")
    parser.add_argument("--only", nargs="*", default=[""], help="rows that begin with one of these words")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/gpu-CARD.jsonl")
    given = parser.parse_args()
    ends = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        scale = Scale(given.device, given.tiny, Path(folder))
        about = measure("start", scale, 120)
        card = re.sub(r"\W+", "-", str(about.get("card", given.device))).strip("-")
        out = given.out or HERE / "results" / f"gpu-{card}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            for name, (limit, _) in rows().items():
                if name != "start" and not name.startswith(tuple(given.only)):
                    continue
                left = ends - time.monotonic()
                if name == "start":
                    result = about | {"command": " ".join(sys.argv), "commit": _commit()}
                elif left < 5:
                    result = {"status": "skipped", "reason": f"the {given.minutes:g} minutes are over"}
                else:
                    patience = 4 * limit if given.device == "cpu" else limit  # it has other work beside
                    result = measure(name, scale, min(patience, left))
                line = json.dumps({"row": name, **result})
                print(line, flush=True)
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())


def _commit() -> str:
    words = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

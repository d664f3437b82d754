"""What grows with the federation: idle clients, a thousand large models a round, a million registered nodes, the start.

Each row is a run in a process of its own, on MNIST; seconds are medians of the rounds after the second.

    python benchmarks/scale.py                      # needs mnist.npz in $FEDKD_DATA or data/
    python benchmarks/scale.py --json rows.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from rich.console import Console
from rich.table import Table

IDLE = f"{Path(__file__).resolve().parent / 'idle.py'}:Idle"
LENET, MLP = {"name": "lenet5"}, {"name": "mlp", "hidden": [3000, 3000]}  # 62 thousand and 11.4 million parameters
RAY, INLINE = {"name": "ray", "workers": 2}, {"name": "inline"}


def measure(
    registered: int, cohort: int, model: dict[str, Any], strategy: str, engine: dict[str, Any], rounds: int, pipe: Any
) -> None:
    """Run, and send: seconds until the first round, seconds a round, and megabytes of this process, at most, while
    rounds run: its own memory, and pages of Ray's object store that it has read.
    """
    begin = time.perf_counter()
    from fedkd.config import parse_config
    from fedkd.core.record import Record
    from fedkd.core.round_loop import run_rounds
    from fedkd.core.setup import make_setup
    from fedkd.runs.run import make_engine

    never = {"every": 10**6, "fraction": 1e-6}
    partition = {"scheme": "drawn", "clients": registered, "alpha": 0.5, "size": 32}
    config = parse_config(
        {
            "rounds": rounds,
            "cohort": cohort,
            "data": {"name": "mnist", "partition": partition, "node_test": 1},
            "model": model,
            "strategy": strategy,
            "engine": engine,
            "evaluate": never,
            "checkpoint": {"every": 10**6},
        }
    )
    seconds: list[float] = []
    own, shared = [0.0], [0.0]
    in_rounds = threading.Event()

    def watch() -> None:
        while in_rounds.wait():
            own[0], shared[0] = max(own[0], _resident("RssAnon")), max(shared[0], _resident("RssShmem"))
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()

    def note(record: Record) -> None:
        if record.number == 0:
            in_rounds.set()
        elif record.number < rounds:  # the last round is measured, which is not what is asked here
            seconds.append(record.seconds["round"])
        if record.number == rounds - 1:
            in_rounds.clear()

    setup = make_setup(config)
    setup.check()
    with make_engine(setup) as carrier:
        started = time.perf_counter() - begin
        run_rounds(setup, carrier, on_round=note)
    pipe.send((started, statistics.median(seconds[1:]), own[0], shared[0]))


def _resident(which: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(which))) / 1024


def in_a_process(*arguments: Any) -> tuple[float, float, float, float]:
    """Return what `measure` sends."""
    context = mp.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=measure, args=(*arguments, theirs))
    process.start()
    theirs.close()
    found: tuple[float, float, float, float] = mine.recv()
    process.join()
    return found


def command(*arguments: str, until: str | None = None) -> float:
    """Return the seconds that a fedkd command takes, or until it says so."""
    begin = time.perf_counter()
    run = [sys.executable, "-m", "fedkd", *arguments]
    if until is None:
        subprocess.run(run, check=True, capture_output=True)
        return time.perf_counter() - begin
    with subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if until in line)
        seconds = time.perf_counter() - begin
        process.stderr.read()
    return seconds


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(what: str, value: float, unit: str) -> None:
        rows.append({"what": what, "value": value, "unit": unit})
        print(f"{what}: {value:.4g} {unit}", flush=True)

    for name, engine in (("inline", INLINE), ("ray, 2 workers", RAY)):
        _, seconds, _, _ = in_a_process(200, 100, LENET, IDLE, engine, 13)
        add(f"idle client, lenet5, 100 a round, {name}", 1000 * seconds / 100, "ms a client")
        _, seconds, _, _ = in_a_process(200, 10, MLP, IDLE, engine, 9)
        add(f"idle client, 11.4M parameters, 10 a round, {name}", 1000 * seconds / 10, "ms a client")
    _, _, small, _ = in_a_process(1000, 1000, LENET, "fedavg", RAY, 3)
    _, seconds, own, shared = in_a_process(1000, 1000, MLP, "fedavg", RAY, 3)
    add("1,000 clients a round, 11.4M parameters, ray, 2 workers", seconds, "s a round")
    add("its driver's own memory beyond that with lenet5", (own - small) / (11_388_010 * 4 / 2**20), "models")
    add("its driver's pages of the object store", shared / (11_388_010 * 4 / 2**20), "models")
    for name, engine in (("inline", INLINE), ("ray, 2 workers", RAY)):
        for registered in (100, 1_000_000):
            started, seconds, own, shared = in_a_process(registered, 100, LENET, "fedavg", engine, 9)
            about = f"{registered:,} registered, 100 a round, {name}"
            add(f"{about}: start", started, "s")
            add(f"{about}: round", seconds, "s")
            add(f"{about}: memory of the driver", own + shared, "MB")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.toml"
        config.write_text(
            "rounds = 1\n"
            'data = { name = "mnist", train_per_class = 50, partition = { scheme = "iid", clients = 10 } }\n'
            'model = "lenet5"\nstrategy = "fedavg"\nevaluate = { every = 9 }\n'
        )
        first = [
            command("run", str(config), "--set", "rounds=2", "--out", f"{folder}/{i}", until="round 1/")
            for i in range(5)
        ]  # fmt: skip
        add("command to the end of the first round, inline", statistics.median(first), "s")
    add("fedkd --help", statistics.median(command("--help") for _ in range(5)), "s")
    add("fedkd list strategies", statistics.median(command("list", "strategies") for _ in range(5)), "s")
    table = Table("what", "value", "unit", title="scale", title_justify="left")
    for row in rows:
        table.add_row(str(row["what"]), f"{row['value']:.4g}", str(row["unit"]))
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Seconds a round: our engines beside a plain PyTorch loop in one and two processes, and Flower's own simulation.

All run FedAvg on MNIST: 100 clients of equal size, 10 a round, LeNet-5, batches of 32, one local epoch, SGD 0.05, no
evaluation. They take turns, and the table shows the median round of each. pfl and BlazeFL take part where they are
installed (see other_frameworks.py).

    python benchmarks/engine.py                     # needs mnist.npz in $FEDKD_DATA or data/
    python benchmarks/engine.py --images 32         # one step a client: the engine alone
    python benchmarks/engine.py --json rows.json    # what, seconds, ratio to the plain loop in one process
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from fedkd.config import Config, parse_config
from fedkd.core.environment import Environment
from fedkd.core.record import Record
from fedkd.core.round_loop import run_rounds
from fedkd.core.setup import make_setup
from fedkd.deployment.on_site import SiteApp
from fedkd.deployment.sites import Sites
from fedkd.runs.run import make_engine

CLIENTS, COHORT, BATCH, RATE = 100, 10, 32, 0.05


def make_config(images: int, rounds: int, engine: dict[str, Any], model: dict[str, Any]) -> Config:
    """Return the run that all competitors do."""
    partition = {"scheme": "client_dirichlet", "clients": CLIENTS, "alpha": 0.5, "size": images}
    never = {"every": 10**6}
    return parse_config(
        {
            "rounds": rounds,
            "cohort": COHORT,
            "data": {"name": "mnist", "partition": partition, "node_test": 1},
            "model": model,
            "train": {"batch_size": BATCH, "optimizer": {"name": "sgd", "lr": RATE}},
            "strategy": {"name": "fedavg"},
            "engine": engine,
            "evaluate": never,
            "checkpoint": never,
        }
    )


def ours(config: Config) -> list[float]:
    """Return the seconds of each round of one of our engines."""
    seconds: list[float] = []

    def note(record: Record) -> None:
        if record.number:
            seconds.append(record.seconds["round"])

    setup = make_setup(config)
    with make_engine(setup) as engine:
        run_rounds(setup, engine, on_round=note)
    return seconds


def flower(config: Config, gpus: float = 0.0) -> list[float]:
    """Return the seconds of each round of the same ServerApp and ClientApp under Flower's own simulation, 2 actors.

    `gpus`: the share of a GPU of each actor.
    """
    seconds: list[float] = []

    def note(record: Record) -> None:
        if record.number:
            seconds.append(record.seconds["round"])

    setup = make_setup(config)
    client_app, server_app = SiteApp(lambda run_config: config), ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run_rounds(setup, Sites(grid, setup), on_round=note)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": gpus}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app, client_app, setup.environment.data.clients, backend_config=resources)  # type: ignore[arg-type]
    return seconds


class Plain:
    """FedAvg as one would write it in plain PyTorch: a model, tensors sliced once, in-place SGD, a running sum."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        torch.set_num_threads(1)
        environment = Environment(config, device=device)
        self.model = environment.model(0).to(memory_format=torch.contiguous_format)  # as models are made
        data = environment.data
        floats = environment.preprocess(data.train.inputs)
        labels = torch.from_numpy(data.train.labels).to(environment.device)
        self.parts = [(floats[data.train_parts[i]], labels[data.train_parts[i]]) for i in range(data.clients)]
        self.batch, self.rate = config.train.batch_size, config.train.optimizer.lr

    def work(self, clients: list[int], start: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the sum of these clients' trained weights."""
        total = [torch.zeros_like(t) for t in start]
        parameters = list(self.model.parameters())
        for client in clients:
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
            optimizer = torch.optim.SGD(parameters, lr=self.rate)
            images, labels = self.parts[client]
            order = torch.randperm(len(labels)).to(labels.device)
            for begin in range(0, len(labels), self.batch):
                batch = order[begin : begin + self.batch]
                optimizer.zero_grad()
                F.cross_entropy(self.model(images[batch]), labels[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, parameter in zip(total, parameters, strict=True):
                    sum_.add_(parameter)
        return total


def plain_one(config: Config, device: str = "cpu") -> list[float]:
    """Return the seconds of each round of the plain loop in one process."""
    plain = Plain(config, device)
    weights = [p.detach().clone() for p in plain.model.parameters()]
    seconds = []
    for number in range(config.rounds):
        begin = time.perf_counter()
        cohort = _cohort(number, len(plain.parts), config.cohort or len(plain.parts))
        weights = [t / len(cohort) for t in plain.work(cohort, weights)]
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds


def _plain_worker(config: Config, pipe: Any) -> None:
    plain = Plain(config)
    pipe.send([p.detach().clone().numpy() for p in plain.model.parameters()])
    while (task := pipe.recv()) is not None:
        clients, arrays = task
        pipe.send([t.numpy() for t in plain.work(clients, [torch.from_numpy(a) for a in arrays])])


def plain_two(config: Config) -> list[float]:
    """Return the seconds of each round of the plain loop in two processes, each with half of the cohort."""
    context = mp.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        mine, theirs = context.Pipe()
        process = context.Process(target=_plain_worker, args=(config, theirs))
        process.start()
        pipes.append(mine)
        processes.append(process)
    both = [pipe.recv() for pipe in pipes]
    weights = both[0]
    seconds = []
    for number in range(config.rounds):
        begin = time.perf_counter()
        cohort = _cohort(number)
        for half, pipe in enumerate(pipes):
            pipe.send((cohort[half::2], weights))
        sums = [pipe.recv() for pipe in pipes]
        weights = [(a + b) / COHORT for a, b in zip(*sums, strict=True)]
        seconds.append(time.perf_counter() - begin)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return seconds


def _cohort(number: int, clients: int = CLIENTS, cohort: int = COHORT) -> list[int]:
    generator = torch.Generator()
    generator.manual_seed(number)
    return torch.randperm(clients, generator=generator)[:cohort].tolist()


def _in_process(function: Callable[[Config], list[float]], config: Config, pipe: Any) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    pipe.send(function(config))


def _measure(function: Callable[[Config], list[float]], config: Config) -> list[float]:
    """Run a competitor in a fresh process; return the seconds of its rounds without the first two."""
    context = mp.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_in_process, args=(function, config, theirs))
    process.start()
    theirs.close()
    seconds: list[float] = mine.recv()
    process.join()
    return seconds[2:]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600, help="images a client; 600 are 19 steps")
    parser.add_argument("--rounds", type=int, default=8, help="rounds a turn; the first two do not count")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--hidden", type=int, nargs="*", help="an MLP with these widths instead of LeNet-5")
    parser.add_argument("--only", nargs="*", help="competitors whose names hold one of these words")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    model = {"name": "mlp", "hidden": arguments.hidden} if arguments.hidden else {"name": "lenet5"}

    def config(engine: dict[str, Any]) -> Config:
        return make_config(arguments.images, arguments.rounds, engine, model)

    inline, two = config({"name": "inline"}), config({"name": "ray", "workers": 2})
    competitors: list[tuple[str, Callable[[Config], list[float]], Config]] = [
        ("plain PyTorch loop, 1 process", plain_one, inline),
        ("plain PyTorch loop, 2 processes", plain_two, inline),
        ("fedkd inline", ours, inline),
        ("fedkd ray, 1 worker", ours, config({"name": "ray", "workers": 1})),
        ("fedkd ray, 2 workers", ours, two),
        ("Flower's simulation, 2 actors", flower, inline),
    ]
    from other_frameworks import blazefl_two, pfl_two  # they import this file

    for name, function, package in (
        ("pfl, 2 processes", pfl_two, "pfl"),
        ("BlazeFL, 2 threads", blazefl_two, "blazefl"),
    ):
        if importlib.util.find_spec(package) is not None:
            competitors.append((name, function, inline))
    if arguments.only:
        competitors = [one for one in competitors if any(word in one[0] for word in arguments.only)]
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in competitors}
    for _ in range(arguments.turns):
        for name, function, its_config in competitors:
            seconds[name] += _measure(function, its_config)
    base = statistics.median(seconds[competitors[0][0]])
    rows = [
        {"what": name, "seconds": statistics.median(s), "ratio": statistics.median(s) / base}
        for name, s in seconds.items()
    ]
    steps = -(-arguments.images // BATCH)
    table = Table(title=f"seconds a round, {COHORT} clients of {steps} steps, {model['name']}", title_justify="left")
    for column in ("what", "seconds", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        table.add_row(str(row["what"]), f"{row['seconds']:.3f}", f"{row['ratio']:.2f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

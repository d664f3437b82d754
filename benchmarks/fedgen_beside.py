"""Runs the authors' code of FedGen beside ours, from a checkout of zhuangdizhu/FedGen (dd5807c) that is not ours.

    python benchmarks/fedgen_beside.py run CHECKOUT FedAvg 0.1 0 curve.json     # their code: method, alpha, seed
    python benchmarks/fedgen_beside.py replay CHECKOUT RUN 60                   # FedAvg with the draws of a run of ours

`run` prints the mean of the five best rounds. `replay` gives their code the cohorts, batches and initial weights of a
run of `fedkd reproduce fedgen-mnist --rows FedAvg`, and prints both accuracies after each round. The images are read
from $FEDKD_DATA or data/; nothing of the checkout is changed, but for its data/ folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict

from fedkd import Config, Environment, GlobalModelClient
from fedkd.config import read_config
from fedkd.core.wrapper import make_strategy
from fedkd.data.federation import federate
from fedkd.runs.results import read_run

ROUNDS = 200
_SERVERS = {
    "FedAvg": "serveravg", "FedProx": "serverFedProx", "FedEnsemble": "serverpFedEnsemble", "FedGen": "serverpFedGen",
    "FedDistill": "serverFedDistill",
}  # fmt: skip


def prepared(checkout: Path) -> None:
    """Make the checkout's modules importable, without h5py and plots, and let torch read its files as it did then."""
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)
    for name in ("h5py", "seaborn", "utils.plot_utils"):
        sys.modules[name] = ModuleType(name)
    torch.set_num_threads(1)
    load = torch.load
    torch.load = lambda *given, **more: load(*given, **{**more, "weights_only": False})


def write_data(alpha: str, checkout: Path) -> None:
    """Write the deal of their script as their code reads it; `fedkd.published.partitions` makes the same one."""
    from fedkd.published import tables

    table = tables.read("fedgen-mnist")
    row = next(row for row in table.rows if row.cell == f"alpha {alpha}")
    (config,) = table.configs_of(row).values()
    data = federate(config.data, 0)
    home = checkout / "data" / "Mnist" / f"u20c10-alpha{float(alpha)}-ratio0.5"
    for mode, of in (("train", data.train_of), ("test", data.test_of)):
        users, sizes = {}, []
        for node in range(data.clients):
            samples = of(node)
            images = (torch.from_numpy(samples.inputs).float() / 255 - 0.5) / 0.5
            users[f"f_{node:05d}"] = {"x": images, "y": torch.from_numpy(samples.labels)}
            sizes.append(len(samples.labels))
        (home / mode).mkdir(parents=True, exist_ok=True)
        torch.save({"users": list(users), "user_data": users, "num_samples": sizes}, home / mode / f"{mode}.pt")


def alpha_of(config: Config) -> str:
    """Return the alpha of a run's partition, as text: 0.1 or 1."""
    options = config.data.partition.model_extra if config.data.partition is not None else None
    return f"{(options or {})['alpha']:g}"


def server_of(method: str, alpha: str, seed: int) -> Any:
    """Return their server, as their main.py makes it after `torch.manual_seed(seed)`; numpy has the seed too."""
    servers = {name: import_module(f"FLAlgorithms.servers.{file}") for name, file in _SERVERS.items()}
    base: Any = import_module("FLAlgorithms.servers.serverbase")
    base.Server.save_results = base.Server.save_model = lambda self, *given: None
    personal = base.Server.evaluate_personalized_model

    def without_gradient(self: Any, *given: Any, **more: Any) -> Any:  # with one, a recent numpy refuses its losses
        with torch.no_grad():
            return personal(self, *given, **more)

    base.Server.evaluate_personalized_model = without_gradient
    dataset = f"Mnist-alpha{float(alpha)}-ratio0.5"
    settings = SimpleNamespace(
        dataset=dataset, algorithm=method, num_glob_iters=ROUNDS, local_epochs=20, batch_size=32, gen_batch_size=32,
        learning_rate=0.01, K=1, num_users=10, beta=1.0, lamda=1, mix_lambda=0.1, embedding=0, result_path="results",
        times=1, train=1, device="cpu", model="cnn",
    )  # fmt: skip
    name = "FedDistill" if "FedDistill" in method else method
    np.random.seed(seed)  # noqa: NPY002 - their code draws cohorts from it
    torch.manual_seed(seed)
    model = import_module("utils.model_utils").create_model("cnn", dataset, method)
    return getattr(servers[name], name)(settings, model, seed), settings


def run(method: str, alpha: str, seed: int, out: Path) -> None:
    """Run their code to the end; keep its curve, and print the table's reading of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        server, settings = server_of(method, alpha, seed)
        server.train(settings)
    curve = [float(value) for value in server.metrics["glob_acc"]]
    out.write_text(json.dumps(curve), encoding="utf-8")
    best = float(np.mean(sorted(curve)[-5:]))
    print(f"{method}, alpha {alpha}, seed {seed}: {100 * best:.2f}, last {100 * curve[-1]:.2f}")


def replay(folder: Path, rounds: int) -> None:
    """Run their FedAvg with the cohorts, batches and initial weights of a run of ours; print both curves."""
    ours, config = read_run(folder), read_config(folder / "config.toml")
    environment = Environment(config)
    strategy, _ = make_strategy(config.strategy)
    states = [RecordDict() for _ in range(environment.data.clients)]
    with contextlib.redirect_stdout(io.StringIO()):
        server, _ = server_of("FedAvg", alpha_of(config), 0)
    with torch.no_grad():
        for parameter, tensor in zip(server.model.parameters(), environment.initial_weights().values(), strict=True):
            parameter.copy_(tensor)
    worst = 0.0
    for number in range(1, rounds + 1):
        cohort = ours.lines[number]["cohort"]
        server.selected_users = [server.users[node] for node in cohort]
        with contextlib.redirect_stdout(io.StringIO()):
            server.send_parameters(mode="all")
            server.evaluate()
        for node in cohort:
            client = GlobalModelClient(environment, [strategy], node, states[node], number, "fit", False)
            batches = batches_of(client, environment)
            server.users[node].get_next_train_batch = lambda count_labels=True, batches=batches: next(batches)
            server.users[node].train(number - 1)
        server.aggregate_parameters()
        theirs, own = server.metrics["glob_acc"][-1], ours.lines[number - 1]["metrics"]["personal/accuracy"]
        worst = max(worst, abs(theirs - own))
        print(f"round {number - 1}: theirs {theirs:.4f}, ours {own:.4f}")
    print(f"largest difference: {worst:.4f}")


def batches_of(client: GlobalModelClient, environment: Environment) -> Iterator[dict[str, Any]]:
    """Yield a node's batches of a round, in the form that their code wants."""
    images = environment.preprocess(client.data.inputs)
    for positions in client._next_positions().split(client.settings.batch_size):
        yield {"X": images[positions], "y": client.labels[positions], "labels": [], "counts": []}


def main() -> None:
    """Run or replay, as the first word says."""
    what, checkout = sys.argv[1], Path(sys.argv[2]).resolve()
    paths = [Path(word).resolve() for word in sys.argv[3:]]
    prepared(checkout)
    if what == "run":
        method, alpha, seed = sys.argv[3], sys.argv[4], int(sys.argv[5])
        write_data(alpha, checkout)
        run(method, alpha, seed, paths[3])
    else:
        config = read_config(paths[0] / "config.toml")
        write_data(alpha_of(config), checkout)
        replay(paths[0], int(sys.argv[4]))


if __name__ == "__main__":
    main()

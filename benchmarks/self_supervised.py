"""Seconds a step of each self-supervised base, alone and under FedX, with a CNN and CIFAR-sized images, one thread.

A base alone forwards 2B images, FedX 3B, and 2B more through the frozen teacher: what the add-on should cost.

    python benchmarks/self_supervised.py
"""

from __future__ import annotations

import statistics
import time

import torch
from flwr.app import RecordDict

from fedkd import Payload
from fedkd.config import parse_config
from fedkd.core.setup import make_setup
from fedkd.data.federated_data import FederatedData

BASES = ("simclr", "moco", "byol", "fedu", "protocl")
BATCH, STEPS, REPEATS = 64, 6, 5


def seconds(strategy: dict[str, object], data: FederatedData | None) -> tuple[float, FederatedData]:
    """Return the median seconds of a step of local training, and the data for the next."""
    config = parse_config(
        {
            "data": {"name": "digits", "size": 32, "channels": 3, "partition": {"scheme": "iid", "clients": 2}},
            "model": {"name": "convnet", "channels": [32, 64, 64], "norm": "batch"},
            "train": {"steps": STEPS, "batch_size": BATCH, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}},
            "strategy": strategy,
        }
    )
    setup = make_setup(config, data)
    method, environment = setup.strategy, setup.environment
    request = Payload(weights=method.initial_weights(environment))
    found = []
    for number in range(1, REPEATS + 1):
        client = method.client_class()(environment, method.layers(), 0, RecordDict(), number, "fit", False)
        begin = time.perf_counter()
        getattr(client, "fit")(request)  # noqa: B009
        found.append((time.perf_counter() - begin) / STEPS)
    return statistics.median(found), environment.data


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    data: FederatedData | None = None
    print("| base | alone, ms a step | with FedX | ratio |\n|---|---|---|---|")
    for name in BASES:
        base = {"name": name, **({"queue": 512} if name in ("moco", "protocl") else {})}
        alone, data = seconds(base, data)
        both, data = seconds({"name": "fedx", "base": base}, data)
        print(f"| `{name}` | {1000 * alone:.0f} | {1000 * both:.0f} | {both / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()

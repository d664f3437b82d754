"""Short self-supervised runs, and clients of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor

from fedkd import Batch
from fedkd.config import Config
from fedkd.core.setup import Setup, make_setup
from fedkd.methods.self_supervised import Encoder, SelfSupervised
from helpers import Make

CONVNET = {"name": "convnet", "channels": [8, 16], "norm": "batch", "pooling": "max"}


SSL: dict[str, Any] = {
    "model": CONVNET,
    "train": {"epochs": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.03, "momentum": 0.9}},
    "data.validation": {"size": 200},
}


SMALL = {"width": 16, "probe_epochs": 10}


ALONE: dict[str, dict[str, Any]] = {
    "simclr": {"name": "simclr", **SMALL},
    "moco": {"name": "moco", "queue": 64, **SMALL},
    "protocl": {"name": "protocl", "queue": 64, "clusters": [3, 5], **SMALL},
    "byol": {"name": "byol", "momentum": 0.9, **SMALL},
    "fedu": {"name": "fedu", "momentum": 0.9, "threshold": 0.2, **SMALL},
}


SELF_SUPERVISED = ALONE | {f"fedx over {name}": {"name": "fedx", "base": base} for name, base in ALONE.items()}


def published() -> tuple[Tensor, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x1, x2, xa = torch.randn(8, 16), torch.randn(8, 16), torch.randn(8, 16)
    assert x1[0, :3].tolist() == pytest.approx([-1.12583983, -1.15236020, -0.25057858])
    return x1, x2, xa


def grid(count: int, width: int, phase: float) -> Tensor:
    return torch.sin(0.7 * torch.arange(count * width, dtype=torch.float64) + phase).view(count, width).float()


def client_of(config: Config, node: int = 0) -> tuple[Any, Setup]:
    setup = make_setup(config)
    layers = setup.strategy.layers()
    return setup.strategy.client_class()(setup.environment, layers, node, RecordDict(), 1, "fit", False), setup


def started(tiny: Make, strategy: dict[str, Any]) -> tuple[Any, Encoder, Batch]:
    """Return a client that has begun, its encoder, and its first batch."""
    client, setup = client_of(tiny({**SSL, "strategy": strategy}))
    base = setup.strategy.layers()[-1]
    assert isinstance(base, SelfSupervised)
    encoder = base.encoder(setup.environment)
    encoder.load_state_dict(setup.strategy.initial_weights(setup.environment))
    client.begin(encoder)
    encoder.train()
    return client, encoder, next(client.batches())

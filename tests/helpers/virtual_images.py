"""Short runs on virtual images, and what they leave behind."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fedkd.messages.arrays import Tensors, tensors_of
from fedkd.runs.checkpoints import latest, load_nodes
from helpers import server_state

NET = {"name": "convnet", "channels": [8, 8]}


QUICK = {"ipc": 2, "initial_steps": 2, "real_batch": 8}


LGD = {**QUICK, "name": "fedlgd", "server_ipc": 1, "local_steps": 2, "global_steps": 2, "gap": 2, "times": 1}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def server(folder: Path) -> dict[str, Tensors]:
    return server_state(folder)


def virtual_of(folder: Path) -> dict[int, Tensors]:
    states = load_nodes(latest(folder / "checkpoints")[1])
    return {node: tensors_of(state["virtual"]) for node, state in states}  # type: ignore[arg-type]

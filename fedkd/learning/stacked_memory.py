"""How much memory a client of a stacked step needs, and how much is free."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..config import Sgd, TrainConfig
from ..data.spec import Form
from ..streams import default_stream
from .training import cross_entropy

_VMAP = 2  # vmap keeps up to twice the activations of a plain step


def bytes_of_client(model: nn.Module, settings: TrainConfig, form: Form) -> int:
    """Return the bytes that a client adds to a stacked step, at most: from one plain step on noise.

    Counted are its parameters and gradients with their temporaries, what the optimiser and a method keep for them (two
    more copies: control variates, a frozen model), and what the step keeps for the gradient.
    """
    some = next(model.parameters())
    images = form.drawn(settings.batch_size, torch.Generator().manual_seed(0)).to(some.device)
    labels = torch.zeros(settings.batch_size, dtype=torch.int64, device=some.device)
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dropout = default_stream(torch.Generator().manual_seed(0))
    with dropout, saved_tensors_hooks(note, lambda tensor: tensor):
        cross_entropy(model.train(), images, labels)
    model.load_state_dict(state)
    copies = 3 + 2 + (1 if isinstance(settings.optimizer, Sgd) else 2)
    return copies * sum(tensor.nbytes for tensor in state.values()) + _VMAP * (sum(kept.values()) + images.nbytes)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2**33  # a system that does not say

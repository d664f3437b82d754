"""Random streams: one for each (seed, round, node, purpose). The global generators are never used.

A draw depends only on these four values. So results do not depend on the engine, the number of workers, the order in
which clients run, or a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Node = int | str  # a node's id, or "server"


def stream_seed(seed: int, round_number: int, node: Node, purpose: str) -> int:
    """Return the 63-bit seed of a stream: a hash of its four values."""
    key = f"{seed}/{round_number}/{node}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def torch_stream(seed: int, round_number: int, node: Node, purpose: str) -> torch.Generator:
    """Return the stream as a torch generator on the CPU."""
    generator = torch.Generator()
    generator.manual_seed(stream_seed(seed, round_number, node, purpose))
    return generator


def numpy_stream(seed: int, round_number: int, node: Node, purpose: str) -> np.random.Generator:
    """Return the stream as a NumPy generator."""
    return np.random.default_rng(stream_seed(seed, round_number, node, purpose))


@contextmanager
def default_stream(generator: torch.Generator) -> Iterator[None]:
    """Make torch's default generators continue this stream inside the `with` block, and restore them after it.

    For torch code that has no generator argument: module initialisers, dropout, torchvision's transforms. Of GPUs it
    is the current one, if this process has used it.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    defaults = [torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)]
    before = [default.get_state() for default in defaults]
    try:
        defaults[0].set_state(generator.get_state())
        for default in defaults[1:]:
            default.manual_seed(generator.initial_seed())
        yield
    finally:
        for default, state in zip(defaults, before, strict=True):
            default.set_state(state)

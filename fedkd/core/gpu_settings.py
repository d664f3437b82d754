"""Settings of torch for a whole process, which a run on a GPU changes and puts back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # read at the process's first product on a GPU
_REFUSED = r"[\s\S]*(does not have a deterministic implementation|CuBLAS)"


@contextmanager
def gpu_settings(device: torch.device, deterministic: bool, note: Callable[[str], None]) -> Iterator[None]:
    """Inside the `with` block, make work on a GPU repeatable to the bit; after it, restore the process's settings.

    An operation that has no such form runs all the same, and `note` gets a line about it, once for each. Without
    `deterministic` settings are only restored. On a CPU nothing changes: work there is repeatable.
    """
    if device.type != "cuda":
        yield
        return
    precisions = [(part, part.fp32_precision) for part in precision_parts()]
    settings = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    benchmark, filled, cublas = (
        torch.backends.cudnn.benchmark,
        memory.fill_uninitialized_memory,
        os.environ.get(_CUBLAS),
    )
    try:
        with warnings.catch_warnings():
            if deterministic:
                _note_refused(note)
                os.environ.setdefault(_CUBLAS, ":4096:8")
                torch.use_deterministic_algorithms(True, warn_only=True)
                torch.backends.cudnn.benchmark = False
                memory.fill_uninitialized_memory = False
            yield
    finally:
        torch.use_deterministic_algorithms(settings[0], warn_only=settings[1])
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = filled
        for part, value in precisions:
            part.fp32_precision = value
        if cublas is None:
            os.environ.pop(_CUBLAS, None)


def precision_parts() -> list[Any]:
    """Return the parts of torch that have a precision of float32 on a GPU: convolutions, recurrences, products."""
    backends: Any = torch.backends
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]


def _note_refused(note: Callable[[str], None]) -> None:
    """Report each operation that torch warns of, once."""
    said: set[str] = set()
    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        text = str(message).partition(" does not have a deterministic")
        if not text[1] and "CuBLAS" not in text[0]:
            show(message, category, *where, **more)
            return
        name = text[0] if text[1] else "a product (cuBLAS was used before the run began)"
        if name not in said:
            said.add(name)
            note(f"not repeatable to the bit on a GPU: {name} has no deterministic form")

    warnings.filterwarnings("always", message=_REFUSED)
    warnings.showwarning = shown

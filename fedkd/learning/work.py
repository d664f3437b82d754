"""Work with a model, which a client does alone, or in one step with other clients of its process."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from .batches import Preprocess


class Work(Protocol):
    """Work that an engine may do for many clients in one step: local training, prediction, ..."""

    @property
    def model(self) -> nn.Module:
        """The model, with the client's weights; clients of a process share the object."""

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing of the client's images."""

    def alone(self) -> Any:
        """Do the work for this client; return its result."""


def alone(work: Work) -> Any:
    """Do the work of one client; return its result."""
    return work.alone()

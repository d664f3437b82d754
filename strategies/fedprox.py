"""FedProx: FedAvg whose clients stay near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020,
arXiv:1812.06127, equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from fedkd import (
    ANY_TASK,
    AnyOptimizer,
    Client,
    Environment,
    InputError,
    Loss,
    ModelLoss,
    NotNegative,
    Own,
    Task,
    TorchOptimizer,
    cross_entropy,
)

from .fedavg import FedAvg, FedAvgClient


class FedProxClient(FedAvgClient):
    """Minimises h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||^2."""

    def local_loss(self) -> Loss:
        """Return the cross-entropy plus the proximal term around the received weights."""
        method: FedProx = self.strategy
        if method.official_quirks:
            return cross_entropy
        return proximal_loss({name: p.detach().clone() for name, p in self.model.named_parameters()}, method.mu)

    def local_optimizer(self) -> AnyOptimizer:
        """Return the optimiser of `[train]`; with official_quirks, mu is added to its weight decay."""
        method, optimizer = cast(FedProx, self.strategy), self.settings.optimizer
        if not method.official_quirks:
            return optimizer
        assert not isinstance(optimizer, TorchOptimizer), "check() says so"
        return optimizer.model_copy(update={"weight_decay": optimizer.weight_decay + method.mu})


def proximal_loss(center: Mapping[str, Tensor], mu: float) -> ModelLoss:
    """Return CE + mu/2 ||w - center||^2; `center`: a tensor for each parameter, by name."""
    return ModelLoss(of_parameters=partial(_proximal_term, mu=mu), own=center)


def _proximal_term(parameters: Mapping[str, Tensor], center: Own, mu: float) -> Tensor:
    parts = [((p - center[name]) ** 2).sum() for name, p in parameters.items()]
    return mu / 2 * torch.stack(parts).sum()


@dataclass(kw_only=True)
class FedProx(FedAvg):
    """FedProx (Li et al., 2020, equation 2): the proximal term is part of the loss, so momentum and Adam include it.

    mu: its weight; the paper tunes it in {0.001, 0.01, 0.1, 1}; 0 is FedAvg. The paper's stragglers, which train fewer
    epochs (its gamma-inexact solutions), are `faults.partial_work`.
    official_quirks: replicates what FedFTG's code calls FedProx: no proximal term, and mu added to the weight decay,
    also on FedFTG's server (set its weight_decay).
    """

    client: ClassVar[type[Client]] = FedProxClient
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    own_statistics: ClassVar[bool] = True
    mu: NotNegative = 0.01
    official_quirks: bool = False

    def check(self, environment: Environment) -> None:
        """Raise InputError, with official_quirks, for optimisers whose weight decay may not be part of the gradient."""
        super().check(environment)
        optimizer = environment.config.train.optimizer
        if self.official_quirks and (isinstance(optimizer, TorchOptimizer) or optimizer.name == "adamw"):
            raise InputError(
                f"strategy.official_quirks: it adds mu to weight decay, which {optimizer.name} does not apply through "
                "the gradient, or not for sure; use sgd or adam with lr, momentum and weight_decay only."
            )

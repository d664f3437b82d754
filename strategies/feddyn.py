"""FedDyn: each client's regulariser changes with its training, so that the local optima agree with the global one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: Federated Learning Based on Dynamic Regularization, ICLR 2021,
arXiv:2111.04263, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor

from fedkd import (
    ANY_KIND,
    ANY_NUMBER,
    ANY_TASK,
    UNWEIGHTED,
    Client,
    Environment,
    InputError,
    Kind,
    ModelLoss,
    Own,
    Payload,
    Positive,
    Round,
    SharesClient,
    Strategy,
    Task,
    Tensors,
    TorchOptimizer,
    expected_model,
    mean_images,
    share_numbers,
    under,
    weighted_mean,
)

_DRIFT = "drift"


class FedDynClient(SharesClient):
    """Keeps h_k, the sum of the changes that its training made to the received models."""

    def fit(self, request: Payload) -> Payload:
        """Minimise CE + a_k/2 ||theta - w||^2 + a_k <theta, h_k>; then h_k <- h_k + theta_k - w."""
        method, optimizer = cast(FedDyn, self.strategy), self.settings.optimizer
        start = {name: p.detach().clone() for name, p in self.load_model(request.weights).named_parameters()}
        drift = self.recall(_DRIFT) or {name: torch.zeros_like(p) for name, p in start.items()}
        drift = {name: tensor.to(start[name].device) for name, tensor in drift.items()}
        alpha = method.alpha / self.share_of(request.numbers)
        if method.official_quirks:
            assert not isinstance(optimizer, TorchOptimizer), "check() says so"
            optimizer = optimizer.model_copy(update={"weight_decay": optimizer.weight_decay + alpha})
        linear_only = method.official_quirks
        loss = self.train_locally(dynamic_loss(start, drift, alpha, linear_only=linear_only), optimizer)
        moved = {name: drift[name] + p.detach() - start[name] for name, p in self.model.named_parameters()}
        self.keep(_DRIFT, moved)
        return Payload(weights=self.weights(), numbers={"examples": UNWEIGHTED, "loss": loss})


def dynamic_loss(
    start: Mapping[str, Tensor], drift: Mapping[str, Tensor], alpha: float, *, linear_only: bool = False
) -> ModelLoss:
    """Return CE + alpha/2 ||theta - w||^2 + alpha <theta, h>, by parameter names; w is `start`, h is `drift`.

    `linear_only`: CE + alpha <theta, h - w>, for an optimiser whose weight decay is increased by alpha. The gradient is
    the same, but `train.clip` does not include alpha theta.
    """
    own = {**under("start", start), **under("drift", drift)}
    return ModelLoss(of_parameters=partial(_dynamic_term, alpha=alpha, linear_only=linear_only), own=own)


def _dynamic_term(parameters: Mapping[str, Tensor], own: Own, alpha: float, linear_only: bool) -> Tensor:
    parts = []
    for name, theta in parameters.items():
        start, drift = own[f"start/{name}"], own[f"drift/{name}"]
        if linear_only:
            parts.append((theta * (drift - start)).sum())
        else:
            parts.append(((theta - start) ** 2).sum() / 2 + (theta * drift).sum())
    return alpha * torch.stack(parts).sum()


@dataclass(kw_only=True)
class FedDyn(Strategy):
    """FedDyn (Acar et al., 2021, Algorithm 1): w <- mean_{k in S} theta_k + mean_{all k} h_k.

    In the paper's symbols, h_k = -grad L_k / alpha, and the mean of all h_k is -h / alpha. alpha: 0.1, 0.01 or 0.001 in
    the paper. Means are unweighted, as in the paper; buffers (the statistics of batch norm) get the mean over the
    cohort only. official_quirks: as in FedDyn's and FedFTG's code: alpha is divided by the node's share of images, and
    the quadratic term is weight decay, which `train.clip` does not include. The nodes then report their numbers of
    images before round 1.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = FedDynClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    alpha: Positive = 0.01
    official_quirks: bool = False
    mean_drift: Tensors = field(default_factory=dict, init=False)
    mean_images: float | None = field(default=None, init=False)

    def check(self, environment: Environment) -> None:
        """Raise InputError, with official_quirks, for optimisers whose weight decay may not be part of the gradient."""
        optimizer = environment.config.train.optimizer
        if self.official_quirks and (isinstance(optimizer, TorchOptimizer) or optimizer.name == "adamw"):
            raise InputError(
                f"strategy.official_quirks: it adds alpha to weight decay, which {optimizer.name} does not apply "
                "through the gradient, or not for sure; use sgd or adam with lr, momentum and weight_decay only."
            )

    def prepare(self, federation: Round) -> None:
        """Set h_k = 0 for all nodes."""
        model = federation.environment.model(0)
        self.mean_drift = {name: torch.zeros_like(p, device="cpu") for name, p in model.named_parameters()}
        if self.official_quirks:
            self.mean_images = mean_images(federation)

    def run_round(self, federation: Round) -> None:
        """Send the global model, average the trained models, add the mean of all h_k."""
        assert self.weights is not None
        start = self.weights
        expect = expected_model(start, unweighted=True, loss=ANY_NUMBER)  # its linear term may be below 0
        payload = Payload(weights=start, numbers=share_numbers(self.mean_images))
        merged = federation.ask("fit", payload, expect=expect, merge=weighted_mean)
        share = merged.numbers["examples"] / len(federation.nodes)  # |S| / N: only the cohort's h_k have changed
        self.mean_drift = {n: h + share * (merged.weights[n] - start[n]) for n, h in self.mean_drift.items()}
        self.weights = merged.weights | {n: merged.weights[n] + h for n, h in self.mean_drift.items()}
        federation.log("train_loss", merged.numbers["loss"])

"""FedNova: averaging in which clients with more local steps have no more weight.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
NeurIPS 2020, arXiv:2007.07481, equations 9 and 10, and section 4 for momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from fedkd import (
    ANY_KIND,
    ANY_TASK,
    IMAGES,
    LOSS,
    Client,
    Environment,
    Expected,
    GlobalModelClient,
    InputError,
    Kind,
    Payload,
    Round,
    Sgd,
    Strategy,
    Task,
    Tensors,
    like,
)

_ROUNDING = 1e-9  # tolerance: two machines may compute slightly different powers of the same number


def normaliser(steps: int, momentum: float) -> float:
    """Return ||a||_1, the sum of the weights of the gradients in `steps` steps of SGD; `steps` at momentum 0."""
    if not momentum:
        return float(steps)
    # the first step must count as exactly 1, but the closed form may round it
    return max(1.0, (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum))


class FedNovaClient(GlobalModelClient):
    """Returns the sum of its gradients' weights with its model."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights; return them with the number `normaliser`."""
        reply = super().fit(request)
        momentum = cast(Sgd, self.settings.optimizer).momentum
        reply.numbers["normaliser"] = normaliser(self.settings.batches(len(self.data.labels)), momentum)
        return reply


@dataclass(kw_only=True)
class FedNova(Strategy):
    """FedNova (Wang et al., 2020): w <- w - (sum_k p_k a_k) sum_k p_k (w - theta_k) / a_k.

    p_k = n_k / n, a_k = ||a_k||_1 the sum of the weights of client k's gradients (its steps, for SGD without momentum).
    With equal a_k it is FedAvg. Buffers (the statistics of batch norm) are averaged by p_k.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = FedNovaClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True

    def check(self, environment: Environment) -> None:
        """Raise InputError for optimisers other than SGD: the weights of their gradients are not known."""
        if not isinstance(environment.config.train.optimizer, Sgd):
            raise InputError('train.optimizer: fednova needs { name = "sgd", ... }, with or without momentum.')
        if environment.config.train.within_round is not None:
            raise InputError("train.schedule: fednova needs one learning rate in a round; set by = 'round'.")

    def run_round(self, federation: Round) -> None:
        """Send the global model; average the normalised changes; change the model by the mean times sum_k p_k a_k."""
        assert self.weights is not None
        start = self.weights
        trained = {name for name, _ in federation.environment.model(0).named_parameters()}
        numbers = {"examples": IMAGES, "loss": LOSS}
        expect = {
            node: Expected(weights=like(start), numbers={**numbers, "normaliser": (1, self._most(federation, node))})
            for node in federation.cohort
        }
        sums: Tensors = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
        examples = steps = loss = 0.0
        for _, reply in federation.ask("fit", Payload(weights=start), expect=expect, stream=True):
            count, a = reply.numbers["examples"], reply.numbers["normaliser"]
            for name, total in sums.items():
                theta = reply.weights[name].double()
                total += count * ((start[name].double() - theta) / a if name in trained else theta)
            examples += count
            steps += count * a
            loss += count * reply.numbers["loss"]
        means = {name: total / examples for name, total in sums.items()}
        for name in trained:
            means[name] = start[name].double() - steps / examples * means[name]
        self.weights = {
            name: (mean if start[name].is_floating_point() else mean.round()).to(start[name].dtype)
            for name, mean in means.items()
        }
        federation.log("train_loss", loss / examples)
        federation.log("effective_steps", steps / examples)

    def _most(self, federation: Round, node: int) -> float:
        """Return the largest normaliser that a node can have with the number of images that it reported."""
        images = federation.carrier.images_of(node)
        if images is None:
            return math.inf
        momentum = cast(Sgd, federation.config.train.optimizer).momentum
        most = normaliser(federation.config.train.batches(images), momentum)
        return most * (1 + _ROUNDING) if momentum else most

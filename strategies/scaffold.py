"""SCAFFOLD: control variates that correct the drift of local steps.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML
2020, arXiv:1910.06378, Algorithm 1, option II.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd import (
    ANY_KIND,
    ANY_NUMBER,
    ANY_TASK,
    IMAGES,
    UNWEIGHTED,
    Client,
    Environment,
    Expected,
    InputError,
    Kind,
    ModelLoss,
    Own,
    Payload,
    Positive,
    Round,
    Sgd,
    SharesClient,
    Strategy,
    Task,
    Tensors,
    copied,
    default_stream,
    like,
    mean_images,
    mean_weighted_by,
    share_numbers,
    split_off,
    torch_stream,
    under,
    weighted_mean,
)

_CONTROL = "control_variate"
_ANCHOR = "anchor"


class ScaffoldClient(SharesClient):
    """Keeps its control variate c_k."""

    def fit(self, request: Payload) -> Payload:
        """Take K steps along g + c - c_k; then c_k <- c_k - c + (w - theta_k) / (K lr)."""
        method: Scaffold = self.strategy
        weights, anchor = split_off(_ANCHOR, request.weights)
        model = self.load_model(weights)
        device = self.environment.device
        control = {name: tensor.to(device) for name, tensor in request.control_variates.items()}
        own = self.recall(_CONTROL) or method.first_control(self.environment)
        own = {name: tensor.to(device) for name, tensor in own.items()}
        share = self.share_of(request.numbers)
        anchor = {n: (anchor if method.official_quirks else weights)[n].to(device) for n in control}
        rate = (self.environment.config.train if method.official_quirks else self.settings).optimizer.lr
        steps = self.settings.batches(len(self.data.labels))
        correction = {n: control[n] / share - own[n] for n in control}
        if method.correction == "gradient":
            loss = self.train_locally(corrected_loss(correction))
        else:
            loss = self.train_locally(corrections=correction)
        theta = {name: p.detach() for name, p in model.named_parameters()}
        new = {n: own[n] - control[n] + (anchor[n] - theta[n]) / (steps * rate) for n in control}
        self.keep(_CONTROL, new)
        return Payload(
            weights=self.weights(),
            control_variates={name: (share * (new[name] - own[name])).cpu() for name in control},
            numbers={"examples": UNWEIGHTED if method.weighting == "uniform" else len(self.data.labels), "loss": loss},
        )


def corrected_loss(correction: Mapping[str, Tensor]) -> ModelLoss:
    """Return CE + <theta, correction>, whose gradient is g + c - c_k; `correction` is c - c_k by parameter name."""
    return ModelLoss(of_parameters=_linear_term, own=correction)


def _linear_term(parameters: Mapping[str, Tensor], correction: Own) -> Tensor:
    return torch.stack([(theta * correction[name]).sum() for name, theta in parameters.items()]).sum()


@dataclass(kw_only=True)
class Scaffold(Strategy):
    """SCAFFOLD (Karimireddy et al., 2020, Algorithm 1, option II).

    w <- w + server_lr (mean_{k in S} theta_k - w), c <- c + |S|/N mean_{k in S} (c_k' - c_k); unweighted means, as in
    the paper. Buffers (the statistics of batch norm) get the mean over the cohort. K is the number of local steps, lr
    this round's learning rate. `train.clip` acts on g + c - c_k.

    Three options are as in NIID-Bench (Li et al., 2022, arXiv:2102.02079) and in Flower's baseline of it.
    correction: of a step: `gradient`, c - c_k is added to the gradient, as in the paper; `outside`, SGD takes its step,
    which may have momentum, along the gradient, and then w <- w - lr (c - c_k).
    weighting: of the nodes of the cohort in the means of theta_k and of c_k' - c_k: `uniform`, or `examples`, their
    numbers of images (in NIID-Bench's own code the second mean stays uniform).
    initial_control: what c and all c_k start from: `zero`; `weights`, the first global model (Flower's); `random`, the
    weights of another random network (the authors'). A node computes it from the run's seed in its first round.
    official_quirks: as in FedFTG's code: in the steps, c is divided by the node's share of images; changes of c_k are
    multiplied by it; in the rule of c_k, w is the last *aggregated* model, even if a wrapper has refined the model that
    was sent, and the learning rate does not decay.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = ScaffoldClient
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    server_lr: Positive = 1.0
    official_quirks: bool = False
    correction: Literal["gradient", "outside"] = "gradient"
    weighting: Literal["uniform", "examples"] = "uniform"
    initial_control: Literal["zero", "weights", "random"] = "zero"
    control: Tensors = field(default_factory=dict, init=False)
    aggregated: Tensors = field(default_factory=dict, init=False)
    mean_images: float | None = field(default=None, init=False)

    def check(self, environment: Environment) -> None:
        """Raise InputError for local training other than plain SGD: its changes are not sums of gradients.

        With the correction outside of the step, momentum is let through, as in the code that does so.
        """
        optimizer = environment.config.train.optimizer
        if not isinstance(optimizer, Sgd) or (optimizer.momentum and self.correction == "gradient"):
            raise InputError(
                "train.optimizer: scaffold uses (w - theta_k) / (K lr) as the mean of gradients, which is only true "
                'for { name = "sgd", lr = ... } without momentum. SGD with momentum, as in NIID-Bench, needs '
                'strategy.correction = "outside".'
            )
        if environment.config.train.within_round is not None:
            raise InputError("train.schedule: scaffold needs one learning rate in a round; set by = 'round'.")

    def prepare(self, federation: Round) -> None:
        """Start the control variate."""
        self.control = self.first_control(federation.environment)
        if self.official_quirks:
            assert self.weights is not None
            self.aggregated = {name: self.weights[name] for name in self.control}
            self.mean_images = mean_images(federation)

    def first_control(self, environment: Environment) -> Tensors:
        """Return what c and all c_k start from: the same on the server and on each node."""
        parameters = dict(environment.model(0).named_parameters())
        if self.initial_control == "zero":
            return {name: torch.zeros_like(p, device="cpu") for name, p in parameters.items()}
        if self.initial_control == "weights":
            weights = environment.initial_weights()
        else:
            with default_stream(torch_stream(environment.config.seed, 0, "server", "initial-control")):
                weights = copied(environment.new_model(0).state_dict())
        return {name: weights[name] for name in parameters}

    def run_round(self, federation: Round) -> None:
        """Send model and control variate; average the models and the changes of the control variates."""
        assert self.weights is not None
        start = self.weights
        uniform = self.weighting == "uniform"
        expect = Expected(
            weights=like(start),
            control_variates=like(self.control),
            numbers={
                "examples": (UNWEIGHTED, UNWEIGHTED) if uniform else IMAGES,
                "loss": ANY_NUMBER,  # <theta, c - c_k> may be below 0
            },
        )
        payload = Payload(
            weights=start | under(_ANCHOR, self.aggregated),
            control_variates=self.control,
            numbers=share_numbers(self.mean_images),
        )
        merge = weighted_mean if uniform else partial(mean_weighted_by, weight=float)
        merged = federation.ask("fit", payload, expect=expect, merge=merge)
        replies = merged.numbers["examples"] if uniform else merged.numbers.get("replies", 1)
        share = replies / len(federation.nodes)
        self.control = {n: c + share * merged.control_variates[n] for n, c in self.control.items()}
        moved = merged.weights
        if self.server_lr != 1.0:
            moved |= {n: start[n] + self.server_lr * (moved[n] - start[n]) for n in self.control}
        self.weights = moved
        self.aggregated = {name: moved[name] for name in self.aggregated}
        federation.log("train_loss", merged.numbers["loss"])

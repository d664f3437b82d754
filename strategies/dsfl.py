"""DS-FL: clients learn from sharpened averages of soft labels on unlabelled public images.

Itahara, Nishio, Koda, Morikura, Yamamoto: Distillation-Based Semi-Supervised Federated Learning for
Communication-Efficient Collaborative Training with Non-IID Private Data, 2021, arXiv:2008.06180. The order of requests
follows a public re-implementation from the group of one of the authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedkd import (
    ANY_TASK,
    Client,
    Environment,
    InputError,
    Loss,
    Payload,
    Positive,
    RelayClient,
    RelayStrategy,
    Round,
    Task,
    copied,
    distillation_of,
    entropy,
    loss_towards,
    make_optimizer,
    normalised,
    read_loss,
    train,
    with_labels,
)


def entropy_reduction(probabilities: Tensor, temperature: float = 0.1) -> Tensor:
    """Return softmax(p / T) of mean probabilities p, P x C: the paper's entropy reduction aggregation (ERA).

    It acts on probabilities, so the largest possible output, for a one-hot row, is e^(1/T) / (e^(1/T) + C - 1).
    """
    return torch.softmax(probabilities.double() / temperature, dim=-1)


def enhanced_entropy_reduction(probabilities: Tensor, beta: float) -> Tensor:
    """Return p^beta / sum p^beta of mean probabilities p, P x C: SCARLET's enhanced ERA; beta = 1 changes nothing."""
    return torch.softmax(beta * probabilities.double().log(), dim=-1)  # the powers alone may underflow


@dataclass(kw_only=True)
class DSFL(RelayStrategy):
    """DS-FL (Itahara et al., 2021); models may differ.

    aggregation: `era`, softmax(mean p / temperature) with temperature 0.1; `enhanced_era`, p^beta / sum p^beta; `mean`,
    the plain mean, which several labels and targets need. Clients distil the last targets, train, and predict on the
    next subset. Only the server uses the targets of the last round. The server trains a model of the first architecture
    on the same targets: the method's global result. Its optimiser is that of `[train]`.

    `personal/accuracy` is measured after local training, `personal_after_distillation/accuracy` before it.
    """

    client: ClassVar[type[Client]] = RelayClient
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    aggregation: Literal["era", "enhanced_era", "mean"] = "era"
    temperature: Positive = 0.1
    beta: Positive = 1.0

    def check(self, environment: Environment) -> None:
        """Also raise InputError for an aggregation that sharpens probabilities of classes, if there are none."""
        super().check(environment)
        task = environment.data.spec.task
        if self.aggregation != "mean" and task != "classification":
            raise InputError(
                f"strategy.aggregation = {self.aggregation!r} is for classes; data.task is {task!r}: set 'mean'."
            )

    def run_round(self, federation: Round) -> None:
        """Relay, aggregate the knowledge, train the server's model on it."""
        knowledge = self.relay(federation)
        mean = torch.stack(list(knowledge.values())).double().mean(0)
        teacher = mean
        if self.aggregation == "era":
            teacher = entropy_reduction(mean, self.temperature)
        elif self.aggregation == "enhanced_era":
            teacher = enhanced_entropy_reduction(mean, self.beta)
        self.targets = {"all": teacher.float()}
        if federation.environment.data.spec.task == "classification":
            federation.log("mean_entropy", float(entropy(normalised(mean)).mean()))
            federation.log("target_entropy", float(entropy(teacher).mean()))
        self._train_server(federation)

    def _train_server(self, federation: Round) -> None:
        assert self.weights is not None
        environment = federation.environment
        public = environment.data.public
        assert public is not None
        model = environment.model(0)
        model.load_state_dict(self.weights)
        settings = federation.config.train.in_round(federation.number)
        images = public.take(self.indices["subset"].numpy()) if self.indices else public
        targets = self.targets["all"]
        towards: Loss = distillation_of(environment.data.spec.task)
        if self.loss is not None:
            chosen = read_loss(self.loss, federation.number)
            targets = with_labels(chosen, targets, torch.from_numpy(images.labels))
            towards = loss_towards(chosen, self.sends)
        loss = train(
            model,
            images,
            targets,
            epochs=self.distil_epochs,
            batch_size=self.distil_batch_size,
            optimizer=make_optimizer(model, settings.optimizer),
            preprocess=environment.preprocess,
            order=federation.stream("server-distillation"),
            clip=settings.clip,
            loss=towards,
            augment=False,
        )
        self.weights = copied(model.state_dict())
        federation.log("server_loss", loss)

    def evaluation(self, federation: Round) -> Payload:
        """Return an empty payload: nodes measure their own models, and the server measures its model."""
        return Payload()

"""FedDF: the server distils all clients' models into one model for each architecture, on unlabelled images.

Lin, Kong, Stich, Jaggi: Ensemble Distillation for Robust Model Fusion in Federated Learning, NeurIPS 2020,
arXiv:2006.07242, Algorithms 1 and 3; and the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    ANY_TASK,
    Architecture,
    Client,
    Count,
    Environment,
    GlobalModelClient,
    InputError,
    Kind,
    NamedTable,
    Payload,
    Positive,
    Round,
    Sends,
    Strategy,
    Task,
    Tensors,
    check_loss,
    copied,
    expected_model,
    kl_from_probabilities,
    predict,
    read_loss,
    shuffled,
    soft,
    value_towards,
    weighted_mean,
    with_labels,
)

Teacher = Literal["avg_logits", "avg_probs", "avg_losses"]
_BETTER_THAN_CHANCE = 1.2  # drop_worst keeps a teacher whose accuracy is at least this factor times chance


def ensemble_targets(logits: Tensor, teacher: Teacher, temperature: float, task: Task = "classification") -> Tensor:
    """Return the teachers' targets, P x C probabilities, from their logits, K x P x C.

    Of several labels with sigmoid in place of softmax; of outputs for targets, their mean.

    `avg_logits`: softmax(mean_k z_k / T); `avg_probs`: mean_k softmax(z_k), without temperature; `avg_losses`: mean_k
    softmax(z_k / T). For the last one, KL has the same gradient as the mean of the K losses: they differ by a constant.
    """
    logits = logits.double()
    if teacher == "avg_logits":
        return soft(logits.mean(0), task, temperature).float()
    return soft(logits, task, temperature if teacher == "avg_losses" else 1.0).mean(0).float()


@dataclass(kw_only=True)
class FedDF(Strategy):
    """FedDF (Lin et al., 2020); one fused model for each architecture; models may differ.

    A round: clients train the fused model of their architecture. The server averages the models of each architecture,
    weighted by numbers of images, and distils all received models into each average: KL(t || softmax(z / T)) without
    the factor T^2, Adam with a cosine schedule over `steps` batches of `distil_batch_size`, gradients clipped at norm
    `clip`. teacher: see `ensemble_targets`; T is `temperature`. loss: one of `fedkd.kd_losses` with its options, in
    place of KL; its teacher has the mean logits, or the logarithm of the mean probabilities, and T is its own.
    With `data.validation` the model is checked every `check_every` steps and the best one is kept; distillation stops
    after `patience` steps without a better one. Without it, all steps are done and the last model is kept. drop_worst:
    leave out teachers below 1.2 times chance on the validation images.

    Values: Adam 0.001, 10,000 steps of 128, check every 100, patience 1,000, clip 5, T = 1 in the authors' runs.
    Statistics of batch norm are averaged like weights; distillation then updates them with the public images.
    `global/accuracy` is the mean over the fused models.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    tasks: ClassVar[frozenset[Task]] = ANY_TASK
    balances: ClassVar[bool] = True
    client: ClassVar[type[Client]] = GlobalModelClient
    listed_models: ClassVar[bool] = True
    teacher: Teacher = "avg_logits"
    temperature: Positive = 1.0
    steps: Count = 10_000
    distil_batch_size: Count = 128
    distil_lr: Positive = 1e-3
    clip: Positive = 5.0
    check_every: Count = 100
    patience: Count = 1000
    drop_worst: bool = False
    loss: NamedTable | None = None
    models: dict[int, Tensors] = field(default_factory=dict, init=False)

    def check(self, environment: Environment) -> None:
        """Raise InputError if there is no public set, or if drop_worst has no validation images."""
        if environment.data.public is None:
            raise InputError("strategy feddf needs a public set: set data.public, such as public = { size = 2000 }.")
        config, task = environment.config.data.public, environment.data.spec.task
        check_loss(self.loss, environment, self._sends, labelled=config is not None and config.labelled)
        if self.drop_worst and task != "classification":
            raise InputError(f"strategy.drop_worst = true: it compares teachers with chance; data.task is {task!r}.")
        if self.drop_worst and environment.data.validation is None:
            raise InputError(
                "strategy.drop_worst = true: it measures teachers on the server's labelled images, which are missing; "
                "set data.validation, such as validation = { size = 500 }."
            )

    def prepare(self, federation: Round) -> None:
        """Make the first models."""
        count = len(federation.config.model.architectures)
        self.models = {n: federation.environment.initial_weights(n) for n in range(count)}

    def run_round(self, federation: Round) -> None:
        """Ask the cohort to train, average the models of each architecture, distil all models into each average."""
        environment = federation.environment
        down = {n: Payload(weights=weights) for n, weights in self.models.items()}
        specs = {n: expected_model(w) for n, w in self.models.items()}
        kinds = {node: environment.architecture_of(node) for node in federation.cohort}
        replies = list(
            federation.ask(
                "fit", {m: down[n] for m, n in kinds.items()}, expect={m: specs[n] for m, n in kinds.items()}
            )
        )
        logits = self._teach(federation, [(kinds[node], reply.weights) for node, reply in replies])
        for number in sorted({kinds[node] for node, _ in replies}):
            own = [reply for node, reply in replies if kinds[node] == number]
            average = copy.deepcopy(Payload(weights=own[0].weights, numbers=own[0].numbers))
            for reply in own[1:]:
                average = weighted_mean(average, reply)
            self.models[number] = average.weights
            if len(logits):
                targets = self._targets(federation, logits)
                self.models[number] = self._distil(federation, number, average.weights, targets)
        examples = sum(reply.numbers["examples"] for _, reply in replies)
        weighted = sum(reply.numbers["loss"] * reply.numbers["examples"] for _, reply in replies)
        federation.log("train_loss", weighted / examples)

    def _teach(self, federation: Round, received: list[tuple[int, Tensors]]) -> Tensor:
        """Return the logits of the kept teachers on the public set, K x P x C. Each is computed once."""
        environment = federation.environment
        public, validation = environment.data.public, environment.data.validation
        assert public is not None
        outputs, dropped = [], 0
        for architecture, weights in received:
            if self.drop_worst:
                assert validation is not None
                accuracy = environment.score(architecture, weights, validation)["accuracy"]
                if accuracy < _BETTER_THAN_CHANCE / len(environment.data.classes):
                    dropped += 1
                    continue
            model = environment.model(architecture)
            model.load_state_dict(weights)
            outputs.append(predict(model, public, environment.preprocess))
        federation.log("dropped_teachers", dropped)
        return torch.stack(outputs) if outputs else torch.empty(0)

    @property
    def _sends(self) -> Sends:
        return "logits" if self.teacher == "avg_logits" else "probabilities"

    def _targets(self, federation: Round, logits: Tensor) -> Tensor:
        data = federation.environment.data
        if self.loss is None:
            return ensemble_targets(logits, self.teacher, self.temperature, data.spec.task)
        assert data.public is not None
        mean = logits.double().mean(0).float()
        targets = mean if self._sends == "logits" else ensemble_targets(logits, self.teacher, 1.0)
        return with_labels(read_loss(self.loss), targets, torch.from_numpy(data.public.labels))

    def _distil(self, federation: Round, architecture: int, start: Tensors, targets: Tensor) -> Tensors:
        environment = federation.environment
        public, validation = environment.data.public, environment.data.validation
        assert public is not None
        model = environment.model(architecture)
        model.load_state_dict(start)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.distil_lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)

        task = environment.data.spec.task
        metric = {"classification": "accuracy", "multilabel": "macro_f1", "regression": "mae"}[task]
        sign = -1.0 if metric == "mae" else 1.0  # a smaller error is better

        def measured() -> float:
            assert validation is not None
            return sign * environment.score(architecture, copied(model.state_dict()), validation)[metric]

        best, best_weights, best_step = (measured(), dict(start), 0) if validation is not None else (0.0, start, 0)
        order = federation.stream(f"distillation-{architecture}")
        loss = None if self.loss is None else read_loss(self.loss, federation.number)
        step = 0
        for chosen in _endless_batches(len(targets), self.distil_batch_size, order):
            model.train()
            images = environment.preprocess(public.inputs[chosen.numpy()])
            optimizer.zero_grad()
            logits = model(images)
            wanted = targets[chosen].to(logits.device)
            if loss is None:
                value = self._own_loss(logits, wanted, task)
            else:
                value = value_towards(logits, wanted, loss, self._sends)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            schedule.step()
            step += 1
            if validation is not None and (step % self.check_every == 0 or step == self.steps):
                now = measured()
                if now > best:
                    best, best_weights, best_step = now, copied(model.state_dict()), step
                if step - best_step >= self.patience:
                    break
            if step == self.steps:
                break
        federation.log(f"distillation_steps_{architecture}", step)
        if validation is None:
            return copied(model.state_dict())
        federation.log(f"best_step_{architecture}", best_step)
        federation.log(f"validation_{metric}_{architecture}", sign * best)
        return best_weights

    def _own_loss(self, outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
        if task == "classification":
            return kl_from_probabilities(outputs, targets, self.temperature)
        if task == "multilabel":
            return F.binary_cross_entropy_with_logits(outputs / self.temperature, targets)
        return F.mse_loss(outputs, targets)

    def evaluation(self, federation: Round) -> dict[int, Payload]:
        """Return for each node the fused model of its architecture."""
        payloads = {n: Payload(weights=weights) for n, weights in self.models.items()}
        return {node: payloads[federation.environment.architecture_of(node)] for node in federation.measured}

    def global_models(self) -> list[tuple[Architecture, Tensors]]:
        """Return the fused models."""
        return list(self.models.items())


def _endless_batches(count: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from shuffled(count, size, order)

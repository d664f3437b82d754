"""FedFTG: the server fine-tunes the averaged model on hard samples of a generator; the clients' models are teachers.

Zhang, Shen, Ding, Tao, Duan: Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated
Learning, CVPR 2022, arXiv:2203.09249; and the authors' code, whose losses are the defaults here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    Architecture,
    ArraySpec,
    Client,
    Count,
    Environment,
    Expected,
    InputError,
    Kind,
    Metric,
    NamedTable,
    NotNegative,
    Payload,
    Positive,
    Round,
    RunError,
    Teachers,
    Tensors,
    Wrapper,
    as_codes,
    copied,
    default_stream,
    diversity_loss,
    generator_of,
    numpy_stream,
    takes_probabilities,
    torch_stream,
)

_ROUNDING = 1e-6  # added to the denominator of the ensemble weights, as in the authors' code
_SHOWN = 20  # the largest number of classes in a figure


class LabelCountsClient(Client):
    """The request that FedFTG adds to the base's client half."""

    def label_counts(self, request: Payload) -> Payload:
        """Return the node's number of images of each class, C."""
        counts = torch.bincount(self.labels, minlength=len(self.environment.data.classes))
        return Payload(statistics={"label_counts": counts.int()})


class GeneratorLosses(NamedTuple):
    """The parts of the generator's loss, unweighted."""

    disagreement: Tensor
    classification: Tensor
    diversity: Tensor


def ensemble_weights(counts: Tensor) -> Tensor:
    """Return alpha, C x K: each teacher's share of the cohort's images of each class (Zhang et al., 2022).

    `counts`: K x C. The rows of classes that the cohort lacks are 0.
    """
    counts = counts.double().T
    return counts / (counts.sum(1, keepdim=True) + _ROUNDING)


def stratified_labels(counts: Sequence[int], number: int, shuffle: Callable[[np.ndarray], None]) -> np.ndarray:
    """Return `number` labels, shuffled by `shuffle`. Each class gets its share of `counts` (C), rounded.

    A class without images gets none; a rare class may get none.
    """
    ends = np.cumsum(np.asarray(counts, np.int64)) * number // max(int(np.sum(counts)), 1)
    labels = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    shuffle(labels)
    return labels


def disagreement_loss(student: Tensor, teacher: Tensor, weights: Tensor, kind: Literal["l1", "kl"]) -> Tensor:
    """Return -(1/B) sum_b a_b d(s_b, t_b); it is lower for harder samples. Logits: B x C; weights: B.

    d: the mean absolute difference of logits (`l1`), or KL(softmax(t) || softmax(s)) (`kl`).
    """
    if kind == "l1":
        distance = (student - teacher).abs().mean(1)
    else:
        target = F.log_softmax(teacher, 1)
        distance = F.kl_div(F.log_softmax(student, 1), target, reduction="none", log_target=True).sum(1)
    return -(weights * distance).mean()


def classification_loss(
    teacher: Tensor, labels: Tensor, weights: Tensor, kind: Literal["batch_mean", "per_sample"]
) -> Tensor:
    """Return the teacher's cross-entropy with the labels, weighted by a_b, B.

    `batch_mean`: the mean cross-entropy times the mean weight, as in the code; `per_sample`: the mean of a_b CE_b.
    """
    if kind == "batch_mean":
        return F.cross_entropy(teacher, labels) * weights.mean()
    return (weights * F.cross_entropy(teacher, labels, reduction="none")).mean()


def ensemble_targets(logits: Tensor, weights: Tensor, kind: Literal["probabilities", "logits"]) -> Tensor:
    """Return the targets q, B x C, from the teachers' logits, K x B x C, and weights a, B x K.

    `probabilities`: sum_k a_k softmax(t_k); `logits`: softmax(sum_k a_k t_k).
    """
    if kind == "probabilities":
        return torch.einsum("bk,kbc->bc", weights, torch.softmax(logits, -1))
    return torch.softmax(torch.einsum("bk,kbc->bc", weights, logits), -1)


def student_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Return -(1 / BC) sum_bc q_bc log softmax(s_b)_c: cross-entropy with soft targets, averaged over classes too."""
    return -(targets * F.log_softmax(student, 1)).mean()


@dataclass(kw_only=True)
class FedFTG(Wrapper):
    """FedFTG (Zhang et al., 2022) over a base that averages weights.

    A round: the base runs its own round. The models that its clients returned are the teachers, frozen. Repeat
    `iterations` (I) times: draw B = `batch_size` labels y and noise z; train the generator with one step for each
    client k, on L_md + lambda_cls L_cls + lambda_dis L_dis / K, `generator_passes` (I_g) times; then train the global
    model with `student_steps` (I_d) steps towards the ensemble on the same z and y. `global/accuracy` is that of the
    fine-tuned model, `aggregated/accuracy` that of the base's model. Learning rates decay as in `[train]`. Both
    optimisers are new in each round; the generator is kept. Statistics of batch norm become those of generated images,
    as in the authors' code.

    Values: those of the authors' CIFAR-10 runs; noise 256 for CIFAR-100. Where paper and code differ, the code is the
    default: `disagreement` (paper: kl), `teacher_gradient` (paper: true), `classification` (paper: per_sample),
    `generator_update` (paper: joint, one step on the sum over clients), `labels` (paper: independent), `ensemble`.
    Samples of other kinds than images (no published form): see `fedkd.distillation.sample_generators`.
    With FedProx and its official_quirks as the base, the authors also add its mu to the weight_decay here. The server
    gets each node's model and label counts, so secure aggregation is not possible.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    balances: ClassVar[bool] = True
    base: NamedTable = field(default_factory=lambda: NamedTable(name="fedavg"))
    iterations: Count = 10
    generator_passes: Count = 1
    student_steps: Count = 5
    batch_size: Annotated[int, Field(ge=2)] = 50
    student_lr: Positive = 0.1
    weight_decay: NotNegative = 1e-3
    generator_lr: Positive = 0.01
    noise: Count = 100
    generator_width: Count = 64
    lambda_cls: NotNegative = 1.0
    lambda_dis: NotNegative = 1.0
    disagreement: Literal["l1", "kl"] = "l1"
    teacher_gradient: bool = False
    classification: Literal["batch_mean", "per_sample"] = "batch_mean"
    diversity: Metric = "l1"
    generator_update: Literal["per_client", "joint"] = "per_client"
    labels: Literal["stratified", "independent"] = "stratified"
    ensemble: Literal["probabilities", "logits"] = "probabilities"
    generator: Tensors = field(default_factory=dict, init=False)
    aggregated: Tensors = field(default_factory=dict, init=False)

    def client_class(self) -> type[Client]:
        """Return the base's client half, which also reports its label counts."""
        return type("FedFTGClient", (LabelCountsClient, super().client_class()), {})

    def check(self, environment: Environment) -> None:
        """Also raise InputError for a wrapper as the base: its model is not the merged model of the clients."""
        super().check(environment)
        if isinstance(self.inner, Wrapper):
            raise InputError(
                f"strategy.base.name = {self.base.name!r}: fedftg refines the merged model of the clients, so its base "
                'must not be a wrapper; swap the two: name = "weight_ema", base = { name = "fedftg" }.'
            )
        form = environment.data.form
        if not takes_probabilities(environment.model(0), form):
            made, fix = "rows with categories as probabilities", "table_mlp"
            if form.kind == "tokens":
                made, fix = "texts as probabilities over the vocabulary", "text_cnn or text_transformer"
            raise InputError(
                f"model.name = {environment.config.model.name!r}: the generator of fedftg makes {made}, which this "
                f"model cannot take; set {fix}."
            )

    def prepare(self, federation: Round) -> None:
        """Call the base's `prepare`; make the generator."""
        super().prepare(federation)
        with default_stream(federation.stream("initial-generator")):
            self.generator = copied(self._new_generator(federation).state_dict())
        self.aggregated = self.weights or {}

    def run_round(self, federation: Round) -> None:
        """Call the base's `run_round`, then fine-tune its model."""
        with federation.overheard() as heard:
            self.inner.run_round(federation)
        self.aggregated = self.weights or {}
        models = {r.node: r.payload.weights for r in heard if r.payload.weights.keys() == self.aggregated.keys()}
        if not models:
            raise RunError(f"strategy.base.name = {self.base.name!r}: its clients return no models as teachers.")
        nodes, counts = self._label_counts(federation, list(models))
        environment = federation.environment
        student = environment.model(0)
        student.load_state_dict(self.aggregated)
        generator = self._new_generator(federation)
        generator.load_state_dict(self.generator)
        labels = self._labels(federation, counts.sum(0).tolist())
        noise = torch.randn(*labels.shape, self.noise, generator=federation.stream("noise"))
        means = self.refine(
            student,
            generator,
            Teachers(student, [models[node] for node in nodes]),
            ensemble_weights(counts).float().to(environment.device),
            labels.to(environment.device),
            noise.to(environment.device),
            decay=federation.config.train.decay(federation.number),
            track=lambda steps: federation.track("server distillation", steps),
        )
        self.weights, self.generator = copied(student.state_dict()), copied(generator.state_dict())
        if not all(bool(torch.isfinite(t).all()) for t in (*self.weights.values(), *self.generator.values())):
            raise RunError(
                f"Round {federation.number}: fine-tuning on the server has diverged; lower strategy.student_lr = "
                f"{self.student_lr} or strategy.generator_lr = {self.generator_lr}."
            )
        for name, value in means.items():
            federation.log(name, value)
        federation.log("label_distribution", (counts.sum(0) / counts.sum()).tolist())
        if federation.due:
            federation.log("teachers", nodes)
            federation.log("ensemble_weights", ensemble_weights(counts).tolist())
            images = self._one_a_class(federation, generator)
            federation.show("generated", images, federation.environment.data.classes[: len(images)])

    def refine(
        self,
        student: nn.Module,
        generator: nn.Module,
        teachers: Teachers,
        weights: Tensor,
        labels: Tensor,
        noise: Tensor,
        *,
        decay: float = 1.0,
        track: Callable[[Sequence[int]], Iterable[int]] = iter,
    ) -> dict[str, float]:
        """Fine-tune the student and train the generator, both in place; return the mean of each loss.

        weights: alpha, C x K; labels: I x B; noise: I x B x nz; decay: the factor of the learning rates.
        """
        student_optimizer = torch.optim.SGD(
            [p for p in student.parameters() if p.requires_grad],
            lr=self.student_lr * decay,
            weight_decay=self.weight_decay,
        )
        generator_optimizer = torch.optim.Adam(generator.parameters(), lr=self.generator_lr * decay)
        generator_losses: list[Tensor] = []
        student_losses: list[Tensor] = []
        for iteration in track(range(len(labels))):
            y, z = labels[iteration], noise[iteration]
            a = weights[y]
            student.eval()
            generator.train()
            for _ in range(self.generator_passes):
                groups = (
                    [range(len(teachers))] if self.generator_update == "joint" else [[k] for k in range(len(teachers))]
                )
                for group in groups:
                    losses = self.generator_losses(student, generator, teachers, a, y, z, group)
                    dis_share = len(group) / len(teachers)
                    value = (
                        losses.disagreement
                        + self.lambda_cls * losses.classification
                        + self.lambda_dis * dis_share * losses.diversity
                    )
                    _step(generator_optimizer, value)
                    generator_losses.append(torch.stack(losses).detach())
            student.train()
            generator.eval()
            with torch.no_grad():  # z, y and teachers are fixed, so images and targets are the same in all steps
                images = generator(z, y)
                targets = ensemble_targets(teachers(images), a, self.ensemble)
            for _ in range(self.student_steps):
                value = student_loss(student(images), targets)
                _step(student_optimizer, value)
                student_losses.append(value.detach())
        means = torch.stack(generator_losses).double().mean(0).tolist()
        logged = dict(zip(("disagreement_loss", "classification_loss", "diversity_loss"), means, strict=True))
        return logged | {"student_loss": float(torch.stack(student_losses).double().mean())}

    def generator_losses(
        self,
        student: nn.Module,
        generator: nn.Module,
        teachers: Teachers,
        weights: Tensor,
        labels: Tensor,
        noise: Tensor,
        group: Sequence[int],
    ) -> GeneratorLosses:
        """Return the parts of the generator's loss, summed over some of the teachers. weights: a, B x K."""
        images = generator(noise, labels)
        logits = student(images)
        logits_of = [teachers.one(group[0], images)] if len(group) == 1 else list(teachers(images))
        disagreements, classifications = [], []
        for k, teacher in zip(group, logits_of, strict=True):
            seen = teacher if self.teacher_gradient else teacher.detach()
            disagreements.append(disagreement_loss(logits, seen, weights[:, k], self.disagreement))
            classifications.append(classification_loss(teacher, labels, weights[:, k], self.classification))
        return GeneratorLosses(
            torch.stack(disagreements).sum(),
            torch.stack(classifications).sum(),
            diversity_loss(images, noise, self.diversity),
        )

    def stages(self) -> dict[str, tuple[Architecture, Tensors]]:
        """Return the base's model before fine-tuning, and the base's intermediate models."""
        return super().stages() | ({"aggregated": (0, self.aggregated)} if self.aggregated else {})

    def _new_generator(self, federation: Round) -> nn.Module:
        data = federation.environment.data
        generator = generator_of(data.form, self.noise, len(data.classes), self.generator_width)
        return generator.to(federation.environment.device)

    def _label_counts(self, federation: Round, nodes: list[int]) -> tuple[list[int], Tensor]:
        """Return the nodes that reported their label counts, ascending, and the counts, K x C."""
        spec = ArraySpec((len(federation.environment.data.classes),), torch.int32, counts=True)
        request = Payload()
        replies = federation.ask(
            "label_counts", dict.fromkeys(nodes, request), expect=Expected(statistics={"label_counts": spec})
        )
        counts = {node: reply.statistics["label_counts"] for node, reply in replies}
        counts = {node: own for node, own in counts.items() if int(own.sum())}
        if not counts:
            raise RunError(f"Round {federation.number}: no node of the cohort has a labelled image.")
        return list(counts), torch.stack(list(counts.values()))

    def _labels(self, federation: Round, counts: list[int]) -> Tensor:
        """Return labels, I x B, drawn from p_t(y)."""
        number = self.iterations * self.batch_size
        rng = numpy_stream(federation.config.seed, federation.number, "server", "labels")
        if self.labels == "stratified":
            labels = stratified_labels(counts, number, rng.shuffle)
        else:
            labels = rng.choice(len(counts), number, p=np.array(counts) / sum(counts))
        return torch.from_numpy(labels).view(self.iterations, self.batch_size)

    @torch.no_grad()
    def _one_a_class(self, federation: Round, generator: nn.Module) -> np.ndarray:
        """Return one generated image for each class, from the same noise in each round."""
        environment = federation.environment
        labels = torch.arange(min(len(environment.data.classes), _SHOWN))
        order = torch_stream(federation.config.seed, 0, "server", "shown-noise")
        noise = torch.randn(len(labels), self.noise, generator=order)
        device = environment.device
        made = generator.eval()(noise.to(device), labels.to(device))
        return environment.preprocess.pixels(as_codes(made, environment.data.form))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take an optimiser step. Only the gradients of the optimiser's own parameters are computed."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = gradient
    optimizer.step()

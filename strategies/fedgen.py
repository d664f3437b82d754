"""FedGen: the server trains a generator of features with the clients' classifiers; it regularises local training.

Zhu, Hong, Zhou: Data-Free Knowledge Distillation for Heterogeneous Federated Learning, ICML 2021, arXiv:2105.10056,
Algorithm 1; and the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedkd import (
    ANY_KIND,
    IMAGES,
    LOSS,
    ArraySpec,
    Client,
    Count,
    Environment,
    Expected,
    FeatureGenerator,
    GlobalModelClient,
    InputError,
    Kind,
    Loss,
    ModelLoss,
    NotNegative,
    Outputs,
    Own,
    Payload,
    Positive,
    Round,
    RunError,
    Strategy,
    Teachers,
    Tensors,
    copied,
    default_stream,
    diversity_loss,
    kl_divergence,
    like,
    parts_of,
    under,
    weighted_mean,
)

_HEAD = "classifier."
_MOST = 10**9  # images of a label in the batches of a round
_LEAST = 1e-4  # the smallest weight of a loss term in the authors' code


class FedGenClient(GlobalModelClient):
    """Trains with the received generator; returns weights and label counts."""

    def fit(self, request: Payload) -> Payload:
        """Train the received weights, from round 2 on with the generator's loss terms."""
        method: FedGen = self.strategy
        self.load_model(request.weights)
        loss: Loss = self.local_loss()
        if request.generator:
            generator = method.new_generator(self.environment)
            generator.load_state_dict(request.generator)
            distribution = request.statistics["label_distribution"]
            alpha, beta = method.factors(self.round)
            loss = generative_loss(
                generator.eval().requires_grad_(False),
                torch.ones_like(distribution) if method.official_quirks else distribution,
                self.stream("generated"),
                alpha=alpha * method.generated_batch_size / self.settings.batch_size,
                beta=beta,
                size=method.generated_batch_size,
                uniform_noise=method.official_quirks,
            )
        value = self.train_locally(loss)
        labels = self.labels if self.positions is None or not method.official_quirks else self.labels[self.positions]
        counts = torch.bincount(labels, minlength=len(self.environment.data.classes)) + method.official_quirks
        return Payload(
            weights=self.weights(),
            statistics={"label_counts": counts.int()},
            numbers={"examples": len(self.data.labels), "loss": value},
        )


def generative_loss(
    generator: FeatureGenerator,
    distribution: Tensor,
    stream: torch.Generator,
    *,
    alpha: float,
    beta: float,
    size: int,
    uniform_noise: bool = False,
) -> ModelLoss:
    """Return CE(x, y) + alpha CE(h(G(z, y')), y') + beta KL(softmax h(G(z, y)) || p(x)).

    y': `size` labels from `distribution` (C); z ~ N(0, 1), or uniform on 0 to 1; h: the model's classifier. The target
    of the KL is detached.
    """
    noise_of = torch.rand if uniform_noise else torch.randn

    def draw(labels: Tensor, stream: torch.Generator) -> dict[str, Tensor]:
        sampled = torch.multinomial(distribution, size, replacement=True, generator=stream)
        noise = [noise_of(count, generator.noise, generator=stream) for count in (size, len(labels))]
        drawn = {"sampled": sampled, "noise": noise[0], "label_noise": noise[1]}
        return {name: tensor.to(labels.device) for name, tensor in drawn.items()}

    of_outputs = partial(_generative, generator=generator, alpha=alpha, beta=beta)
    return ModelLoss(of_outputs, draw=draw, stream=stream, rows=("label_noise",))


def _generative(
    outputs: Outputs,
    labels: Tensor,
    own: Own,
    frozen: Mapping[str, Outputs],
    generator: FeatureGenerator,
    alpha: float,
    beta: float,
) -> Tensor:
    taught = F.cross_entropy(outputs.classifier(generator(own["noise"], own["sampled"])), own["sampled"])
    kept = kl_divergence(outputs.logits, outputs.classifier(generator(own["label_noise"], labels)))
    return F.cross_entropy(outputs.logits, labels) + alpha * taught + beta * kept


def generator_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, outputs: Tensor, noise: Tensor, eta: float, product: bool = False
) -> Tensor:
    """Return sum_k mean_b a_bk CE(h_k(g_b), y_b) + eta L_div (Zhu et al., 2021, Algorithm 1).

    logits: of the teachers' classifiers, K x B x C; weights a: B x K; outputs g: B x D; noise: B x M. `product`: the
    mean over b and b' of a_bk CE_b', as in the authors' code, whose weights are a column.
    """
    repeated = labels.expand(len(logits), -1)
    losses = F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="none").view_as(repeated)
    weighted = losses.mean(1) * weights.mean(0) if product else (losses * weights.T).mean(1)
    return weighted.sum() + eta * diversity_loss(outputs, noise)


@dataclass(kw_only=True)
class FedGen(Strategy):
    """FedGen (Zhu et al., 2021, Algorithm 1), corrected; equal models.

    Server: average the weights; train G(z, y) for `generator_steps` so that each client's own classifier h_k recognises
    the label in G's features, a_k(y) = n_k^y / sum_j n_j^y, labels from the cohort's distribution. Adam's moments are
    kept between rounds; its learning rate is multiplied by generator_lr_decay^(t - 1).
    Client, from round 2 on: `generative_loss`, alpha and beta times decay^(t - 1). Values: the authors' for MNIST
    (EMNIST: alpha 10, beta 1, generator_lr 1e-4).

    Deviations from their code: noise is normal, as in the paper (their code: uniform); label counts start at 0 (their
    code: at 1); labels for the generator and for y' follow p(y) (their code: uniform over the labels that exist); each
    sample's loss has its own weight (their code: the mean of a B x B product); the regulariser is used in all epochs
    (their code: in 20).
    official_quirks: as their code in all this but the last: noise uniform on 0 to 1; y' uniform over all labels, the
    generator's labels over those with a count above 1; counts start at 1, and with train.continue_epoch they are of the
    images of the round's batches; the B x B product; alpha and beta do not fall below 1e-4.
    """

    kinds: ClassVar[frozenset[Kind]] = ANY_KIND
    client: ClassVar[type[Client]] = FedGenClient
    own_statistics: ClassVar[bool] = True
    equal_models: ClassVar[bool] = True
    global_model: ClassVar[bool] = True
    alpha: NotNegative = 10.0
    beta: NotNegative = 10.0
    eta: NotNegative = 1.0
    decay: Annotated[float, Field(gt=0, le=1)] = 0.98
    generator_steps: Count = 50
    generator_lr: Positive = 3e-4
    generator_lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.98
    generator_weight_decay: NotNegative = 1e-2
    generated_batch_size: Annotated[int, Field(ge=2)] = 32
    noise: Count = 32
    hidden: Count = 256
    official_quirks: bool = False
    generator: Tensors = field(default_factory=dict, init=False)
    moments: Tensors = field(default_factory=dict, init=False)  # the state of Adam
    distribution: Tensor | None = field(default=None, init=False)

    def check(self, environment: Environment) -> None:
        """Raise InputError for models whose features have no known width."""
        if not isinstance(environment.model(0).classifier, nn.Linear):
            raise InputError("strategy fedgen needs a model whose classifier is one linear layer.")

    def factors(self, number: int) -> tuple[float, float]:
        """Return the weights of the two loss terms in a round: alpha and beta times decay^(t - 1)."""
        least = _LEAST if self.official_quirks else 0.0
        decay = self.decay ** (number - 1)
        return max(self.alpha * decay, least), max(self.beta * decay, least)

    def new_generator(self, environment: Environment) -> FeatureGenerator:
        """Return a generator of features for the environment's model; draws from torch's default stream."""
        width = cast(nn.Linear, environment.model(0).classifier).in_features
        generator = FeatureGenerator(self.noise, len(environment.data.classes), self.hidden, width)
        return generator.to(environment.device)

    def prepare(self, federation: Round) -> None:
        """Make the generator."""
        with default_stream(federation.stream("initial-generator")):
            self.generator = copied(self.new_generator(federation.environment).state_dict())

    def run_round(self, federation: Round) -> None:
        """Send model and generator; average the models; train the generator on the clients' classifiers."""
        assert self.weights is not None
        classes = len(federation.environment.data.classes)
        down = Payload(weights=self.weights)
        if self.distribution is not None:
            down.generator, down.statistics = self.generator, {"label_distribution": self.distribution}
        expect = Expected(
            weights=like(self.weights),
            statistics={"label_counts": self._expected_counts(classes)},
            numbers={"examples": IMAGES, "loss": LOSS},
        )
        total: Payload | None = None
        heads, counts = [], []
        for _, reply in federation.ask("fit", down, expect=expect, stream=True):
            heads.append({n.removeprefix(_HEAD): t.clone() for n, t in reply.weights.items() if n.startswith(_HEAD)})
            counts.append(reply.statistics["label_counts"].double())
            model = Payload(weights=reply.weights, numbers=reply.numbers)
            total = model if total is None else weighted_mean(total, model)
        assert total is not None
        self.weights = total.weights
        table = torch.stack(counts)
        if not table.sum():
            raise RunError(f"Round {federation.number}: no node of the cohort has a labelled image.")
        self.distribution = (table.sum(0) / table.sum()).float()
        if self.official_quirks:
            self.distribution = (table.max(0).values > 1).float()
            self.distribution /= self.distribution.sum()
        federation.log("train_loss", total.numbers["loss"])
        federation.log("label_distribution", self.distribution.tolist())
        federation.log("generator_loss", self._train_generator(federation, heads, table))

    def _expected_counts(self, classes: int) -> ArraySpec:
        if self.official_quirks:  # an image counts each time that it is in a batch
            return ArraySpec((classes,), torch.int32, between=(1, _MOST))
        return ArraySpec((classes,), torch.int32, counts=True)

    def _train_generator(self, federation: Round, heads: list[Tensors], counts: Tensor) -> float:
        environment = federation.environment
        generator = self.new_generator(environment)
        generator.load_state_dict(self.generator)
        rate = self.generator_lr * self.generator_lr_decay ** (federation.number - 1)
        optimizer = torch.optim.Adam(generator.parameters(), lr=rate, weight_decay=self.generator_weight_decay)
        _restore_moments(optimizer, self.moments)
        teachers = Teachers(cast(nn.Module, environment.model(0).classifier), heads)
        weights = (counts / counts.sum(0).clamp(min=1)).T.float().to(environment.device)
        stream = federation.stream("generator")
        losses = []
        generator.train()
        assert self.distribution is not None
        for _ in federation.track("generator", range(self.generator_steps)):
            size = self.generated_batch_size
            labels = torch.multinomial(self.distribution, size, replacement=True, generator=stream)
            labels = labels.to(environment.device)
            noise = (torch.rand if self.official_quirks else torch.randn)(size, self.noise, generator=stream)
            noise = noise.to(environment.device)
            outputs = generator(noise, labels)
            logits, own = teachers(outputs), weights[labels]
            loss = generator_loss(logits, labels, own, outputs, noise, self.eta, product=self.official_quirks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        if not all(bool(torch.isfinite(p).all()) for p in generator.parameters()):
            raise RunError(
                f"Round {federation.number}: the generator has diverged; lower strategy.generator_lr = "
                f"{self.generator_lr}."
            )
        self.generator, self.moments = copied(generator.state_dict()), _moments(optimizer)
        return float(torch.stack(losses).double().mean())


def _moments(optimizer: torch.optim.Optimizer) -> Tensors:
    state = optimizer.state_dict()["state"]
    return {name: t for number, entry in state.items() for name, t in under(str(number), copied(entry)).items()}


def _restore_moments(optimizer: torch.optim.Optimizer, moments: Tensors) -> None:
    if moments:
        state = {int(number): dict(entry) for number, entry in parts_of(moments).items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

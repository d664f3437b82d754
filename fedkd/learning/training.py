"""Local training: the training loop of all methods, and the form of a loss that many clients can share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import AnyOptimizer, ScheduleConfig, TrainConfig, batch_sizes
from ..data.samples import Samples
from ..data.spec import Task
from .batches import Preprocess, batches
from .loss_scale import LossScale, all_finite
from .optimizers import Optimizer, corrected_steps, make_optimizer, scheduled

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, images, targets) -> scalar


def cross_entropy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the model's logits with labels (B) or probabilities (B x C)."""
    return F.cross_entropy(full(model(images)), targets)


class Outputs(NamedTuple):
    """What a loss reads of a model: logits, B x C; features, B x D; its classifier, a function of features.

    Features are there if the loss says so.
    """

    logits: Tensor
    features: Tensor
    classifier: Callable[[Tensor], Tensor]


CLASS_WEIGHTS = "class_weights"
Own = Mapping[str, Tensor]  # tensors of one client's loss, by name
OfOutputs = Callable[[Outputs, Tensor, Own, Mapping[str, Outputs]], Tensor]
OfParameters = Callable[[Mapping[str, Tensor], Own], Tensor]


def label_loss(outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    """Return the mean cross-entropy of logits with labels (B) or probabilities (B x C)."""
    return F.cross_entropy(outputs.logits, targets)


def weighted_label_loss(outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    """Return the mean of w_y CE over the batch; w, C: `own["class_weights"]`; labels, B."""
    return (own[CLASS_WEIGHTS][targets] * F.cross_entropy(outputs.logits, targets, reduction="none")).mean()


def several_labels_loss(outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    """Return the mean binary cross-entropy over samples and labels; logits and labels (or probabilities) B x C."""
    return F.binary_cross_entropy_with_logits(outputs.logits, targets)


def squared_loss(outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    """Return the mean squared difference of outputs and targets, B x C, whose means are 0 and deviations 1."""
    return F.mse_loss(outputs.logits, targets)


def probability_loss(outputs: Outputs, targets: Tensor, own: Own, frozen: Mapping[str, Outputs]) -> Tensor:
    """Return the mean of 1 - p_y over the batch, p = softmax of the logits; labels, B.

    Its gradient is that of `NLLLoss` of a model that ends in a softmax, as in AshwinRJ/Federated-Learning-PyTorch.
    """
    return 1 + F.nll_loss(torch.softmax(outputs.logits, dim=1), targets)


LOSSES: Mapping[Task, OfOutputs] = {
    "classification": label_loss,
    "multilabel": several_labels_loss,
    "regression": squared_loss,
}  # of a node's own labels


def of_labels(settings: TrainConfig, task: Task) -> OfOutputs:
    """Return the loss of labels, by the task, `train.loss` and `train.class_weights`."""
    if settings.loss == "probability":
        return probability_loss
    return weighted_label_loss if settings.class_weights == "balanced" else LOSSES[task]


def label_weights(settings: TrainConfig, labels: np.ndarray, classes: int, device: torch.device) -> Own:
    """Return the tensors that `of_labels` reads: the weight of each class, if `train.class_weights` balances them."""
    if settings.class_weights == "none":
        return {}
    return {CLASS_WEIGHTS: balanced_weights(labels, classes).to(device)}


def chances_of(settings: TrainConfig, labels: np.ndarray, classes: int) -> Tensor | None:
    """Return the chance of each sample to be drawn, N; None if `train.sampling` has each of them once in an epoch."""
    return None if settings.sampling == "each" else balanced_weights(labels, classes)[torch.from_numpy(labels)]


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return n / (present classes x n_c) for each class, C, float32; 0 for a class without samples.

    Their mean over the samples is 1.
    """
    counts = np.bincount(labels, minlength=classes)
    shares = len(labels) / (max((counts > 0).sum(), 1) * np.maximum(counts, 1))
    return torch.from_numpy(np.where(counts > 0, shares, 0.0)).float()


@dataclass(frozen=True)
class ModelLoss:
    """A loss of a model's outputs and parameters, which the vectorised engine computes for many clients in one step.

    `of_outputs(outputs, targets, own, frozen)`: a mean of one term for each row of the batch. `of_parameters(by name,
    own)`, if given, is added. Both are functions of a module, or `functools.partial` of one with plain constants: two
    clients share a step if these are equal. `own`: the client's tensors. `frozen`: models without gradients, in eval
    mode, whose outputs the loss reads. `features`: whether it reads features.
    """

    of_outputs: OfOutputs = label_loss
    of_parameters: OfParameters | None = None
    own: Own = field(default_factory=dict)
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    features: bool = False
    draw: Callable[[Tensor, torch.Generator], Own] | None = None
    stream: torch.Generator | None = None
    rows: tuple[str, ...] = ()

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a model on a batch."""
        with torch.no_grad():
            frozen = {name: outputs_of(other, images, self.features) for name, other in self.frozen.items()}
        own = {**self.own, **self.drawn(targets)}
        # before the outputs: the order decides how gradients are summed, and so the last bits
        added = None if self.of_parameters is None else self.of_parameters(dict(model.named_parameters()), own)
        value = self.of_outputs(outputs_of(model, images, self.features), targets, own, frozen)
        return value if added is None else value + added

    def drawn(self, targets: Tensor) -> Own:
        """Return what the loss draws for a batch."""
        if self.draw is None:
            return {}
        assert self.stream is not None, "a ModelLoss with `draw` needs a stream"
        return self.draw(targets, self.stream)


OfBatch = Callable[[nn.Module, Tensor, Tensor, Own], Tensor]


@dataclass(frozen=True)
class BatchLoss:
    """A loss that may compare the images of a batch, which the vectorised engine computes for many clients in one step.

    `of_batch(model, images, targets, own)`: a function of a module, or `functools.partial` of one with plain constants:
    two clients share a step if these are equal. `own`: the client's tensors, which it does not change.
    """

    of_batch: OfBatch
    own: Own = field(default_factory=dict)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a model on a batch."""
        return self.of_batch(model, images, targets, self.own)


def outputs_of(model: nn.Module, images: Tensor, features: bool = False) -> Outputs:
    """Return what a loss reads of a model."""

    def classify(found: Tensor) -> Tensor:
        return cast(Tensor, cast(nn.Module, model.classifier)(found))

    if not features:
        logits = full(model(images))
        return Outputs(logits, logits.new_empty(0), classify)
    found = full(features_of(model, images))
    return Outputs(full(classify(found)), found, classify)


def full(outputs: Tensor) -> Tensor:
    """Return outputs of 16 bits as float32, in which losses are computed; others as they are."""
    return outputs.float() if outputs.dtype in _HALF.values() else outputs


_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def half_of(settings: TrainConfig) -> torch.dtype | None:
    """Return the type with 16 bits of the forward pass, if `train.precision` is one."""
    return _HALF.get(settings.precision)


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return a model's features of a batch, B x D."""
    return cast(Callable[[Tensor], Tensor], model.features)(images)


@dataclass(frozen=True)
class LocalTraining:
    """One call of local training: what is trained, on what, and how. Fields as the arguments of `train`."""

    model: nn.Module
    data: Samples
    targets: Tensor
    epochs: int
    batch_size: int
    optimizer: AnyOptimizer
    preprocess: Preprocess
    order: torch.Generator
    steps: int | None = None
    clip: float | None = None
    loss: Loss = cross_entropy
    augment: bool = True
    beside: nn.Module | None = None
    half: torch.dtype | None = None
    chances: Tensor | None = None
    schedule: ScheduleConfig | None = None  # of the steps
    drop_last: bool = False
    positions: Tensor | None = None
    corrections: Mapping[str, Tensor] | None = None  # by parameter: see `optimizers.corrected_steps`

    def alone(self) -> float:
        """Return the result of `train_alone`."""
        return train_alone(self)


def train_alone(local: LocalTraining) -> float:
    """Train one client's model; return the mean loss as `train` does."""
    trained = local.model if local.beside is None else nn.ModuleList([local.model, local.beside])
    optimizer = make_optimizer(trained, local.optimizer)
    if local.corrections is not None:
        optimizer = corrected_steps(optimizer, {p: local.corrections[n] for n, p in local.model.named_parameters()})
    steps = local.steps or local.epochs * len(batch_sizes(len(local.data.labels), local.batch_size, local.drop_last))
    return train(
        local.model,
        local.data,
        local.targets,
        epochs=local.epochs,
        batch_size=local.batch_size,
        optimizer=scheduled(optimizer, local.schedule, steps),
        preprocess=local.preprocess,
        order=local.order,
        steps=local.steps,
        clip=local.clip,
        loss=local.loss,
        augment=local.augment,
        half=local.half,
        chances=local.chances,
        drop_last=local.drop_last,
        positions=local.positions,
    )


def train(
    model: nn.Module,
    data: Samples,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    preprocess: Preprocess,
    order: torch.Generator,
    steps: int | None = None,
    clip: float | None = None,
    loss: Loss = cross_entropy,
    augment: bool = True,
    half: torch.dtype | None = None,
    chances: Tensor | None = None,
    drop_last: bool = False,
    positions: Tensor | None = None,
) -> float:
    """Minimise `loss` over shuffled batches, in train mode; return its mean over the batches of the last epoch.

    `targets`: one row for each image. `order` draws the shuffles and the augmentation (which `data.augment` turns on).
    Without `augment` images are not augmented; use this for targets that were computed on the original images. With
    `steps`, training takes exactly this number of batches, independent of `epochs`, and the mean is over all of them.
    `clip`: the largest norm of the gradient of `loss`, for each group of the optimiser separately. `half`: compute the
    loss with this type of 16 bits where torch's autocast does; weights and gradients stay as they are. With float16 the
    loss has a scale, and a step whose gradients are not finite is skipped. `chances`, N: draw the samples of an epoch
    with replacement, each by its share of the sum, and not each once. `drop_last`: leave out the last batch of an epoch
    if it is smaller. `positions`: of the images of all `steps` in their order, so that nothing is shuffled here.
    """
    refuse_no_batch(steps, len(data.labels), batch_size, drop_last)
    if not all(module.training for module in model.modules()):
        model.train()
    groups = [group["params"] for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group]
    losses: list[Tensor] = []
    scaled = LossScale(1, preprocess.device) if half == torch.float16 else None
    for _ in range(epochs) if steps is None else count():
        if steps is None:
            losses = []
        elif len(losses) == steps:
            break
        most = None if steps is None else steps - len(losses)
        for images, wanted in batches(
            data, targets, batch_size, preprocess, order, augment, most, chances,
            drop_last=drop_last, positions=positions,
        ):  # fmt: skip
            with torch.autocast(images.device.type, half) if half is not None else nullcontext():
                value = loss(model, images, wanted)
            if scaled is None:
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                _move(gradients, groups, clip, optimizer)
            elif (unscaled := _unscaled(value, parameters, scaled)) is not None:
                _move(unscaled, groups, clip, optimizer)
            losses.append(value.detach())
    return _mean(losses)


def refuse_no_batch(steps: int | None, count: int, size: int, drop_last: bool) -> None:
    """Raise ValueError for a training that has no batch of its `count` images."""
    if steps is not None and not count:
        raise ValueError(f"{steps} steps of training need images, but there are none")
    if drop_last and 0 < count < size:
        raise ValueError(f"train.drop_last: {count} images are fewer than one batch of {size}, so none is left")


def _mean(losses: list[Tensor]) -> float:
    if len(losses) == 1:
        return float(losses[0])
    return float(torch.stack(losses).double().mean()) if losses else 0.0


def _move(
    gradients: Sequence[Tensor | None], groups: list[list[Any]], clip: float | None, optimizer: Optimizer
) -> None:
    """Take the optimiser's step by the gradients of its groups, one after another."""
    left = iter(gradients)
    for group in groups:
        own = list(islice(left, len(group)))
        scale = None if clip is None else _scale(own, clip)
        for parameter, gradient in zip(group, own, strict=True):
            parameter.grad = gradient if gradient is None or scale is None else gradient * scale
    optimizer.step()


def _unscaled(value: Tensor, parameters: list[Any], scaled: LossScale) -> tuple[Tensor, ...] | None:
    """Return the gradients of a loss, computed at its scale; None if they are not finite."""
    factor = scaled.scale.clone()
    gradients = torch.autograd.grad(value * factor[0], parameters, allow_unused=True)
    finite = all_finite(gradients)
    scaled.update(finite)
    return tuple(g if g is None else g / factor[0] for g in gradients) if finite else None


def _scale(gradients: Sequence[Tensor | None], clip: float) -> Tensor:
    """Return the factor that reduces the norm of gradients to at most `clip`, as in `clip_grad_norm_`."""
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return torch.clamp(clip / (norm + 1e-6), max=1.0)


def train_as(
    settings: TrainConfig,
    model: nn.Module,
    data: Samples,
    *,
    preprocess: Preprocess,
    order: torch.Generator,
    loss: Loss = cross_entropy,
    optimizer: Optimizer | None = None,
    chances: Tensor | None = None,
) -> float:
    """Train a model on labelled images as `[train]` says, by default all its weights; return the result of `train`."""
    steps = settings.batches(len(data.labels))
    return train(
        model,
        data,
        preprocess.targets(data.labels),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer=scheduled(optimizer or make_optimizer(model, settings.optimizer), settings.within_round, steps),
        preprocess=preprocess,
        order=order,
        steps=settings.steps,
        clip=settings.clip,
        loss=loss,
        half=half_of(settings),
        chances=chances,
        drop_last=settings.drop_last,
    )

"""Local training, prediction and evaluation: the loops that every method shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import Preprocess, batches
from .config import Adam, Sgd, TrainConfig
from .datasets import Images

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, images, targets) -> scalar
_PREDICTION_BATCH = 500


def cross_entropy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the model's logits with labels (B) or probabilities (B x C)."""
    return F.cross_entropy(model(images), targets)


class Optimizer(Protocol):
    """What training needs of an optimiser: torch's, or ours."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


class SgdSteps:
    """torch.optim.SGD in the same arithmetic.

    Making one of torch's classes imports its compiler, and a step of its functional form sorts the tensors anew.
    """

    def __init__(self, groups: list[list[nn.Parameter]], settings: Sgd) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": group, "lr": settings.lr} for group in groups]
        self._settings = settings
        self._momentum: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters that have a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._move(moved, [p.grad for p in moved], group["lr"])

    def _move(self, moved: list[Any], directions: list[Any], lr: float) -> None:
        if self._settings.weight_decay:
            directions = list(torch._foreach_add(directions, moved, alpha=self._settings.weight_decay))
        if self._settings.momentum:
            before = [(self._momentum[p], d) for p, d in zip(moved, directions, strict=True) if p in self._momentum]
            if before:
                velocities, theirs = map(list, zip(*before, strict=True))
                torch._foreach_mul_(velocities, self._settings.momentum)
                torch._foreach_add_(velocities, theirs)
            self._momentum |= {p: d.clone() for p, d in zip(moved, directions, strict=True) if p not in self._momentum}
            directions = [self._momentum[p] for p in moved]
        torch._foreach_add_(moved, directions, alpha=-lr)


def make_optimizer(model: nn.Module, settings: Sgd | Adam, *peers: nn.Module) -> Optimizer:
    """Return a fresh optimiser over the model's parameters that can be trained, and those of peers, a group each."""
    groups = [[p for p in module.parameters() if p.requires_grad] for module in (model, *peers)]
    if isinstance(settings, Sgd):
        return SgdSteps(groups, settings)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind([{"params": group} for group in groups], lr=settings.lr, weight_decay=settings.weight_decay)


def train(
    model: nn.Module,
    data: Images,
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
) -> float:
    """Minimise `loss` over shuffled batches, in train mode; return its mean over the batches of the last epoch.

    `targets`: one row an image. `order` draws the shuffles and the augmentation (which `data.augment` turns on);
    without `augment` images stay as they are, for targets that were taken on them. With `steps` exactly so many
    batches are taken, whatever `epochs` says, over as many epochs as it needs; the mean is over all of them. `clip`:
    the largest norm of the gradient of `loss`, of each group of the optimiser for itself.
    """
    if steps is not None and not len(data.labels):
        raise ValueError(f"{steps} steps of training need images, and there are none")
    model.train()
    groups = [group["params"] for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group]
    losses: list[Tensor] = []
    for _ in range(epochs) if steps is None else count():
        if steps is None:
            losses = []
        elif len(losses) == steps:
            break
        most = None if steps is None else steps - len(losses)
        for images, wanted in batches(data, targets, batch_size, preprocess, order, augment, most):
            value = loss(model, images, wanted)
            gradients = iter(torch.autograd.grad(value, parameters, allow_unused=True))
            for group in groups:
                own = list(islice(gradients, len(group)))
                scale = None if clip is None else _scale(own, clip)
                for parameter, gradient in zip(group, own, strict=True):
                    parameter.grad = gradient if gradient is None or scale is None else gradient * scale
            optimizer.step()
            losses.append(value.detach())
    return float(torch.stack(losses).double().mean()) if losses else 0.0


def _scale(gradients: Sequence[Tensor | None], clip: float) -> Tensor:
    """Return what gradients are multiplied by so that their norm is `clip` at most, as in `clip_grad_norm_`."""
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return torch.clamp(clip / (norm + 1e-6), max=1.0)


def train_as(
    settings: TrainConfig,
    model: nn.Module,
    data: Images,
    *,
    preprocess: Preprocess,
    order: torch.Generator,
    loss: Loss = cross_entropy,
    optimizer: Optimizer | None = None,
) -> float:
    """Train a model on labelled images as `[train]` says, by default all of its weights; return what `train` does."""
    return train(
        model,
        data,
        torch.from_numpy(data.labels),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer=optimizer or make_optimizer(model, settings.optimizer),
        preprocess=preprocess,
        order=order,
        steps=settings.steps,
        clip=settings.clip,
        loss=loss,
    )


@torch.no_grad()
def predict(model: nn.Module, data: Images, preprocess: Preprocess) -> Tensor:
    """Return the logits of all images in their order, N x C, on the CPU, in eval mode."""
    model.eval()
    labels = torch.from_numpy(data.labels)
    return torch.cat([model(images).cpu() for images, _ in batches(data, labels, _PREDICTION_BATCH, preprocess)])


@torch.no_grad()
def features(model: nn.Module, data: Images, preprocess: Preprocess) -> Tensor:
    """Return the features of all images in their order, N x D, on the CPU, in eval mode."""
    model.eval()
    labels = torch.from_numpy(data.labels)
    extract = cast(Callable[[Tensor], Tensor], model.features)
    return torch.cat([extract(images).cpu() for images, _ in batches(data, labels, _PREDICTION_BATCH, preprocess)])


def evaluate(model: nn.Module, data: Images, preprocess: Preprocess) -> dict[str, float]:
    """Return `accuracy` (a fraction) and `loss` (mean cross-entropy) of a model in eval mode."""
    logits, labels = predict(model, data, preprocess), torch.from_numpy(data.labels)
    correct = int((logits.argmax(1) == labels).sum())
    return {
        "accuracy": correct / len(labels),
        "loss": float(F.cross_entropy(logits.double(), labels)),
    }

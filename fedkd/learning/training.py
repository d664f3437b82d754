"""Local training: the training loop of all methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import TrainConfig
from ..data.images import Images
from .batches import Preprocess, batches
from .optimizers import Optimizer, make_optimizer

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, images, targets) -> scalar


def cross_entropy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the model's logits with labels (B) or probabilities (B x C)."""
    return F.cross_entropy(model(images), targets)


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

    `targets`: one row for each image. `order` draws the shuffles and the augmentation (which `data.augment` turns on).
    Without `augment` images are not augmented; use this for targets that were computed on the original images. With
    `steps`, training takes exactly this number of batches, independent of `epochs`, and the mean is over all of them.
    `clip`: the largest norm of the gradient of `loss`, for each group of the optimiser separately.
    """
    if steps is not None and not len(data.labels):
        raise ValueError(f"{steps} steps of training need images, but there are none")
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
    """Return the factor that reduces the norm of gradients to at most `clip`, as in `clip_grad_norm_`."""
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
    """Train a model on labelled images as `[train]` says, by default all its weights; return the result of `train`."""
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

"""Dataset distillers: methods that make virtual images stand for a source of truth.

A distiller changes a `Virtual` set one iteration at a time, so that its caller can show progress, keep checkpoints
and draw on streams of its own. What it is matched with, the truth, is real images (`RealImages`) or a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import GROUPS, Count, Group, Positive
from ..learning.optimizers import Optimizer
from .matching import Distance, gradient_distance, gradient_of, mean_embedding_loss
from .siamese import siamese_augment
from .virtual_images import VELOCITY, RealImages, Virtual

Momentum = Annotated[float, Field(ge=0, lt=1)]

# The distillers


@dataclass(kw_only=True)
class Distiller:
    """Changes virtual images so that they match a truth: SGD on the pixels, `lr` and `momentum`.

    A subclass is a keyword-only dataclass and writes `iterate`; its fields are the keys of `[distiller]` in a config.
    `fresh_networks`: whether each iteration wants a network with new random weights; else it wants a model that someone
    trains, and the velocity starts anew with each state of it.
    """

    truth: ClassVar[Literal["images", "gradient"]] = "images"
    fresh_networks: ClassVar[bool] = True
    lr: Positive = 1.0
    momentum: Momentum = 0.5

    @abstractmethod
    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Change the virtual set by one iteration; return the loss before its (last) step."""

    def step(self, virtual: Virtual, gradient: Tensor) -> None:
        """Move the pixels: v <- momentum v + g, x <- x - lr v."""
        velocity = virtual.more.get(VELOCITY)
        velocity = gradient if velocity is None else velocity.mul(self.momentum).add_(gradient)
        virtual.more[VELOCITY] = velocity
        virtual.images = virtual.images - self.lr * velocity


def _by_class(virtual: Virtual, truth: RealImages) -> list[tuple[int, Tensor]]:
    """Return the classes that both have, each with the positions of its virtual images."""
    labels = virtual.labels if virtual.labels.dim() == 1 else virtual.labels.argmax(1)
    both = [label for label in labels.unique().tolist() if label in truth.members]
    return [(label, torch.nonzero(labels == label).flatten()) for label in both]


def _seed(stream: torch.Generator) -> int:
    return int(torch.randint(2**31, (1,), generator=stream))


@dataclass(kw_only=True)
class DM(Distiller):
    """DM: distribution matching (Zhao and Bilen, WACV 2023, arXiv:2110.04181), one step an iteration.

    sum over classes of `mean_embedding_loss` of features under a random network, of at most `real_batch` real images
    and all virtual ones, changed alike by one group of `augment` a class (without flip for digits, say the authors).
    Classes that one side lacks are skipped. Batch norm sees a class of one side at a time: take instance norm.
    """

    real_batch: Count = 256
    augment: list[Group] = field(default_factory=lambda: list(GROUPS))

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take one step on the pixels."""
        network.train()
        embed = cast(Callable[[Tensor], Tensor], network.features)
        gradient = torch.zeros_like(virtual.images)
        total = 0.0
        for label, chosen in _by_class(virtual, truth):
            real, seed = truth.draw(label, self.real_batch, stream), _seed(stream)
            with torch.no_grad():
                wanted = embed(siamese_augment(real, seed, self.augment))
            images = virtual.images[chosen].detach().requires_grad_()
            loss = mean_embedding_loss(wanted, embed(siamese_augment(images, seed, self.augment)))
            (gradient[chosen],) = torch.autograd.grad(loss, images)
            total += float(loss.detach())
        self.step(virtual, gradient)
        return total


@dataclass(kw_only=True)
class IDM(DM):
    """IDM: iterative distribution matching of FedLGD: DM's loss under the model that is being trained, not random ones.

    Huang et al., TMLR, arXiv:2303.02278.
    """

    fresh_networks: ClassVar[bool] = False


_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # of the authors' code


@dataclass(kw_only=True)
class DC(Distiller):
    """DC: gradient matching (Zhao, Mopuri, Bilen, ICLR 2021, arXiv:2006.05929).

    An iteration takes a new network and `outer` times: a step on the pixels, on the sum over classes of the distance of
    the gradients of virtual and at most `real_batch` real images; then `inner` epochs of training the network on the
    virtual images (not after the last). `outer` and `inner` are by default the authors' for 1, 10, 20 ... 50 images a
    class, else (ipc, 500 / ipc). Batch norm is frozen after one pass over 16 real images a class.
    """

    lr: Positive = 0.1
    real_batch: Count = 256
    outer: Count | None = None
    inner: Count | None = None
    network_lr: Positive = 0.01
    train_batch: Count = 256
    distance: Distance = "rows"
    augment: list[Group] = field(default_factory=list)

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take `outer` steps on the pixels, and train the network between them."""
        network.train()
        classes = _by_class(virtual, truth)
        ipc = max(len(chosen) for _, chosen in classes)
        outer, inner = _LOOPS.get(ipc, (ipc, max(1, 500 // ipc)))
        outer, inner = self.outer or outer, self.inner or inner
        optimizer = torch.optim.SGD(network.parameters(), lr=self.network_lr)
        total = 0.0
        for number in range(outer):
            _freeze_batch_norm(network, truth, stream)
            gradient = torch.zeros_like(virtual.images)
            total = 0.0
            for label, chosen in classes:
                real, seed = truth.draw(label, self.real_batch, stream), _seed(stream)
                targets = torch.full((len(real),), label, device=real.device)
                wanted = gradient_of(network, siamese_augment(real, seed, self.augment), targets)
                images = virtual.images[chosen].detach().requires_grad_()
                changed = siamese_augment(images, seed, self.augment)
                found = gradient_of(network, changed, virtual.labels[chosen], differentiable=True)
                loss = gradient_distance(found, wanted, self.distance)
                (gradient[chosen],) = torch.autograd.grad(loss, images)  # class by class: one graph at a time
                total += float(loss.detach())
            self.step(virtual, gradient)
            if number < outer - 1:
                network.train()
                for _ in range(inner):
                    train_epoch(network, virtual, optimizer, self.train_batch, self.augment, stream)
        return total


@dataclass(kw_only=True)
class DSA(DC):
    """DSA: DC with the same differentiable augmentation of real and virtual images (Zhao and Bilen, ICML 2021,
    arXiv:2102.08259); the network between the steps trains on augmented virtual images too.
    """

    augment: list[Group] = field(default_factory=lambda: list(GROUPS))


@dataclass(kw_only=True)
class FGM(Distiller):
    """FGM: federated gradient matching of FedLGD (Huang et al., TMLR, arXiv:2303.02278): the truth is a given gradient.

    One gradient of all virtual images at once, not class by class; no augmentation; the network stays as it is, in eval
    mode. `rows` is free of the scale of the truth, so learning rate and number of local steps do not matter to it.
    """

    truth: ClassVar[Literal["images", "gradient"]] = "gradient"
    fresh_networks: ClassVar[bool] = False
    distance: Distance = "rows"

    def iterate(self, virtual: Virtual, truth: Any, network: nn.Module, stream: torch.Generator) -> float:
        """Take one step on the pixels."""
        network.eval()
        images = virtual.images.detach().requires_grad_()
        loss = gradient_distance(
            gradient_of(network, images, virtual.labels, differentiable=True), truth, self.distance
        )
        (gradient,) = torch.autograd.grad(loss, images)
        self.step(virtual, gradient)
        return float(loss.detach())


def train_epoch(
    network: nn.Module,
    virtual: Virtual,
    optimizer: Optimizer,
    batch_size: int,
    augment: Sequence[Group],
    stream: torch.Generator,
) -> None:
    """Train a network for one epoch on virtual images; each batch changed by one group of `augment`, each image with
    parameters of its own.
    """
    for chosen in torch.randperm(len(virtual.labels), generator=stream).to(virtual.images.device).split(batch_size):
        images = siamese_augment(virtual.images[chosen], _seed(stream), augment, siamese=False)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), virtual.labels[chosen]).backward()
        optimizer.step()


def _freeze_batch_norm(network: nn.Module, truth: RealImages, stream: torch.Generator, count: int = 16) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if norms:
        with torch.no_grad():
            network.train()(torch.cat([truth.draw(label, count, stream) for label in truth.members]))
        for norm in norms:
            norm.eval()
